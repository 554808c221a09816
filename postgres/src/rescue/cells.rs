//! Row versions as they are stored, read without a server: for rows that were deleted or written over, which no query
//! shows any more. Common types become text as PostgreSQL prints it; the rest is given as the bytes that are stored.

use super::catalog::{Column, Relation};
use super::changes::RawRow;
use super::log::Cut;
use std::collections::BTreeMap;

/// The value of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// No value.
    Null,
    /// As PostgreSQL prints it.
    Text(String),
    /// A type that only the server can print: the bytes that it stores.
    Bytes(Vec<u8>),
    /// Kept apart from the row because of its size, or compressed, or added to the table later: not read.
    Untold(&'static str),
}

/// Column name to value.
pub(crate) type Row = BTreeMap<String, Cell>;

/// All columns of a stored row; `None` where the bytes do not fit the columns.
pub(crate) fn read(raw: &RawRow, relation: &Relation) -> Option<Row> {
    const HAS_NULL: u16 = 0x0001;
    /// Bytes of a row's header that come before what `RawRow` holds.
    const FIXED_HEADER: usize = 23;
    let stored = usize::from(raw.infomask2 & 0x07FF);
    let body_at = usize::from(raw.header_bytes).checked_sub(FIXED_HEADER)?;
    let values = raw.body.get(body_at..)?;
    let mut at = 0;
    let mut row = Row::new();
    for (index, column) in relation.columns.iter().enumerate() {
        let cell = if index >= stored {
            if column.has_missing { Cell::Untold("added to the table later") } else { Cell::Null }
        } else if raw.infomask & HAS_NULL != 0 && raw.body.get(index / 8)? & (1 << (index % 8)) == 0 {
            Cell::Null
        } else {
            value(values, &mut at, column, relation)?
        };
        if !column.dropped {
            row.insert(column.name.clone(), cell);
        }
    }
    Some(row)
}

fn value(values: &[u8], at: &mut usize, column: &Column, relation: &Relation) -> Option<Cell> {
    let align = match column.align.as_str() {
        "s" => 2,
        "i" => 4,
        "d" => 8,
        _ => 1,
    };
    match column.length {
        // A value with a length of its own: a short header is not aligned, and padding is zero.
        -1 => {
            if *values.get(*at)? == 0 {
                *at = at.next_multiple_of(align);
            }
            variable(values, at, column, relation)
        }
        -2 => {
            *at = at.next_multiple_of(align);
            let rest = values.get(*at..)?;
            let end = rest.iter().position(|byte| *byte == 0)?;
            *at += end + 1;
            Some(text(&rest[..end]))
        }
        length => {
            *at = at.next_multiple_of(align);
            let bytes = values.get(*at..*at + usize::try_from(length).ok()?)?;
            *at += bytes.len();
            Some(fixed(bytes, column, relation).unwrap_or_else(|| Cell::Bytes(bytes.to_vec())))
        }
    }
}

fn variable(values: &[u8], at: &mut usize, column: &Column, relation: &Relation) -> Option<Cell> {
    const EXTERNAL: u8 = 1;
    const ON_DISK: u8 = 18;
    let first = *values.get(*at)?;
    if first == EXTERNAL {
        let size = if *values.get(*at + 1)? == ON_DISK { 18 } else { return None };
        *at += size;
        return Some(Cell::Untold("stored out of line"));
    }
    if first & 1 == 1 {
        let size = usize::from(first >> 1);
        let content = values.get(*at + 1..*at + size.max(1))?;
        *at += size;
        return Some(content_of(content, column, relation));
    }
    let header = u32::from_le_bytes(values.get(*at..*at + 4)?.try_into().ok()?);
    let size = (header >> 2) as usize;
    let content = values.get(*at + 4..(*at).checked_add(size)?)?;
    *at += size;
    if header & 3 == 2 {
        return Some(match decompressed(content) {
            Some(plain) => content_of(&plain, column, relation),
            None => Cell::Untold("compressed"),
        });
    }
    Some(content_of(content, column, relation))
}

/// PGLZ, the compression that PostgreSQL uses unless told otherwise.
fn decompressed(content: &[u8]) -> Option<Vec<u8>> {
    let mut cut = Cut(content);
    let info = cut.u32()?;
    if info >> 30 != 0 {
        return None;
    }
    let size = (info & 0x3FFF_FFFF) as usize;
    let mut plain: Vec<u8> = Vec::with_capacity(size.min(1 << 20));
    while plain.len() < size {
        let control = cut.u8()?;
        for bit in 0..8 {
            if plain.len() >= size {
                break;
            }
            if control & (1 << bit) == 0 {
                plain.push(cut.u8()?);
                continue;
            }
            let (one, two) = (cut.u8()?, cut.u8()?);
            let mut length = usize::from(one & 0x0F) + 3;
            let back = usize::from(one & 0xF0) << 4 | usize::from(two);
            if length == 18 {
                length += usize::from(cut.u8()?);
            }
            let from = plain.len().checked_sub(back).filter(|_| back > 0)?;
            for index in 0..length.min(size - plain.len()) {
                plain.push(plain[from + index]);
            }
        }
    }
    Some(plain)
}

fn text(bytes: &[u8]) -> Cell {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cell::Text(text.to_owned()),
        Err(_) => Cell::Bytes(bytes.to_vec()),
    }
}

fn content_of(content: &[u8], column: &Column, relation: &Relation) -> Cell {
    match column.base_type {
        // text, json, xml, bpchar, varchar; and those of extensions that are nothing but text.
        25 | 114 | 142 | 1043 if relation.utf8 => text(content),
        // Blanks at the end of char(n) are padding.
        1042 if relation.utf8 => text(without_padding(content)),
        17 => Cell::Text(format!("\\x{}", hex(content))),
        1700 => numeric(content).map_or_else(|| Cell::Bytes(content.to_vec()), Cell::Text),
        _ => Cell::Bytes(content.to_vec()),
    }
}

fn without_padding(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &bytes[..end]
}

/// As PostgreSQL writes bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fixed(bytes: &[u8], column: &Column, relation: &Relation) -> Option<Cell> {
    let mut cut = Cut(bytes);
    let shown = match column.base_type {
        16 => if cut.u8()? == 0 { "false" } else { "true" }.to_owned(),
        18 if bytes[0].is_ascii_graphic() => char::from(bytes[0]).to_string(),
        19 => {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            return Some(text(&bytes[..end]));
        }
        20 => i64::from_le_bytes(bytes.try_into().ok()?).to_string(),
        21 => i16::from_le_bytes(bytes.try_into().ok()?).to_string(),
        23 => i32::from_le_bytes(bytes.try_into().ok()?).to_string(),
        26 => cut.u32()?.to_string(),
        700 => float(f64::from(f32::from_le_bytes(bytes.try_into().ok()?)), || {
            f32::from_le_bytes(bytes.try_into().unwrap_or_default()).to_string()
        }),
        701 => {
            let value = f64::from_le_bytes(bytes.try_into().ok()?);
            float(value, || value.to_string())
        }
        1082 => date(i64::from(i32::from_le_bytes(bytes.try_into().ok()?)), i64::from(i32::MAX))?,
        1083 => time_of_day(i64::from_le_bytes(bytes.try_into().ok()?)),
        1114 => timestamp(i64::from_le_bytes(bytes.try_into().ok()?), "")?,
        1184 => timestamp(i64::from_le_bytes(bytes.try_into().ok()?), "+00")?,
        2950 => {
            let all = hex(bytes);
            [&all[..8], &all[8..12], &all[12..16], &all[16..20], &all[20..]].join("-")
        }
        _ => relation.labels.get(&column.base_type.to_string())?.get(&cut.u32()?.to_string())?.clone(),
    };
    Some(Cell::Text(shown))
}

fn float(value: f64, shown: impl Fn() -> String) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        value if value == f64::INFINITY => "Infinity".to_owned(),
        value if value == f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => shown(),
    }
}

/// Days from 2000-01-01 as a date; `end` stands for infinity.
fn date(days: i64, end: i64) -> Option<String> {
    if days == end {
        return Some("infinity".to_owned());
    }
    if days == -end - 1 {
        return Some("-infinity".to_owned());
    }
    let (year, month, day) = civil(days.checked_add(10_957)?);
    if year > 0 {
        return Some(format!("{year:04}-{month:02}-{day:02}"));
    }
    Some(format!("{:04}-{month:02}-{day:02} BC", 1 - year))
}

/// The civil date so many days after 1970-01-01 (the usual algorithm on years that begin in March).
pub(crate) fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn time_of_day(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let whole = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    match micros % 1_000_000 {
        0 => whole,
        rest => format!("{whole}.{rest:06}").trim_end_matches('0').to_owned(),
    }
}

fn timestamp(micros: i64, zone: &str) -> Option<String> {
    const DAY: i64 = 86_400_000_000;
    if micros == i64::MAX || micros == i64::MIN {
        return date(micros, i64::MAX);
    }
    let day = date(micros.div_euclid(DAY), i64::MAX)?;
    let time = time_of_day(micros.rem_euclid(DAY));
    Some(match day.strip_suffix(" BC") {
        Some(day) => format!("{day} {time}{zone} BC"),
        None => format!("{day} {time}{zone}"),
    })
}

/// NUMERIC: digits to the base of 10000 behind a short or a long header.
fn numeric(content: &[u8]) -> Option<String> {
    let mut cut = Cut(content);
    let header = cut.u16()?;
    let (negative, scale, weight) = match header & 0xC000 {
        0xC000 => {
            return Some(
                match header & 0xF000 {
                    0xD000 => "Infinity",
                    0xF000 => "-Infinity",
                    _ => "NaN",
                }
                .to_owned(),
            );
        }
        0x8000 => {
            let low = (header & 0x3F) as i16;
            let weight = if header & 0x40 != 0 { low - 0x40 } else { low };
            (header & 0x2000 != 0, usize::from((header & 0x1F80) >> 7), weight)
        }
        sign => (sign == 0x4000, usize::from(header & 0x3FFF), i16::from_le_bytes(cut.u16()?.to_le_bytes())),
    };
    let digits: Vec<u16> = cut.0.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    let group = |place: i32| {
        let index = i32::from(weight) - place;
        usize::try_from(index).ok().and_then(|index| digits.get(index)).copied().unwrap_or(0)
    };
    let mut shown = String::from(if negative { "-" } else { "" });
    let mut whole: String = (0..=i32::from(weight)).rev().map(|place| format!("{:04}", group(place))).collect();
    whole = whole.trim_start_matches('0').to_owned();
    shown.push_str(if whole.is_empty() { "0" } else { &whole });
    if scale > 0 {
        let groups = i32::try_from(scale.div_ceil(4)).ok()?;
        let fraction: String = (1..=groups).map(|place| format!("{:04}", group(-place))).collect();
        shown.push('.');
        shown.push_str(&fraction[..scale]);
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_read_as_the_server_prints_them() {
        for (days, shown) in [(0, "2000-01-01"), (59, "2000-02-29"), (-10_957, "1970-01-01"), (9820, "2026-11-20")] {
            assert_eq!(date(days, i64::from(i32::MAX)).as_deref(), Some(shown));
        }
        assert_eq!(date(-730_485, i64::from(i32::MAX)).as_deref(), Some("0001-01-01 BC"));
        assert_eq!(timestamp(1_500_000, "+00").as_deref(), Some("2000-01-01 00:00:01.5+00"));
        assert_eq!(timestamp(-1, "").as_deref(), Some("1999-12-31 23:59:59.999999"));
        assert_eq!(timestamp(i64::MAX, "").as_deref(), Some("infinity"));
        assert_eq!(timestamp(i64::MIN, "").as_deref(), Some("-infinity"));
    }

    #[test]
    fn numbers_of_any_size_are_read() {
        let short = |sign: u16, scale: u16, weight: i16, digits: &[u16]| {
            let header = 0x8000 | sign | scale << 7 | (weight & 0x7F) as u16;
            let all = std::iter::once(header).chain(digits.iter().copied());
            numeric(&all.flat_map(u16::to_le_bytes).collect::<Vec<u8>>()).expect("sound")
        };
        assert_eq!(short(0, 0, 0, &[]), "0");
        assert_eq!(short(0, 2, 0, &[12, 3400]), "12.34");
        assert_eq!(short(0x2000, 0, 1, &[1, 0]), "-10000");
        assert_eq!(short(0, 0, 1, &[7]), "70000", "trailing zeros are not stored");
        assert_eq!(short(0, 6, -1, &[1, 2300]), "0.000123");
        assert_eq!(short(0, 5, -2, &[1000]), "0.00001");
        assert_eq!(numeric(&0xC000u16.to_le_bytes()).as_deref(), Some("NaN"));
    }

    #[test]
    fn compressed_values_are_unfolded_and_broken_ones_are_not_guessed() {
        // `ab`, then five bytes from two back.
        let content = [7, 0, 0, 0, 0b100, b'a', b'b', 2, 2];
        assert_eq!(decompressed(&content).as_deref(), Some(&b"abababa"[..]));
        assert_eq!(decompressed(&[7, 0, 0, 0, 0b1, 2, 9]), None, "from before the beginning");
        assert_eq!(decompressed(&[7, 0, 0, 0x40, 0]), None, "another method");
    }
}
