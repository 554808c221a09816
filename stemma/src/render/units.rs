//! Amounts as people read them.

use model::units::WallTime;

/// A span: `0.8 ms`, `4.1 s`, `11m 04s`, `3h 02m`, `6d 4h`.
pub fn span_ms(millis: f64) -> String {
    let seconds = millis / 1000.0;
    if millis < 0.05 {
        "0 ms".to_owned()
    } else if millis < 9.95 {
        format!("{millis:.1} ms")
    } else if millis < 999.5 {
        format!("{millis:.0} ms")
    } else if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else {
        age_ms(millis as u64)
    }
}

/// A span where fractions of a second do not matter: `12s`, `11m 04s`, `3h 02m`, `6d 4h`.
pub fn age_ms(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Bytes, powers of 1024 as PostgreSQL counts: `0 B`, `112 kB`, `1.5 GB`.
pub fn bytes(amount: u64) -> String {
    let mut value = amount as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1023.5 {
            return if unit == "B" || value >= 99.95 {
                format!("{value:.0} {unit}")
            } else {
                let text = format!("{value:.1}");
                format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TB")
}

/// A whole number with separators: `48,211`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in UTC: `2026-03-01 14:05:09Z`.
pub fn time(at: WallTime) -> String {
    match jiff::Timestamp::from_millisecond(at.0) {
        Ok(stamp) => stamp.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_) => format!("{} ms", at.0),
    }
}

/// This machine's civil time; for people only.
pub fn now() -> WallTime {
    WallTime(jiff::Timestamp::now().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        for (millis, text) in [
            (0.0, "0 ms"),
            (0.8, "0.8 ms"),
            (84.0, "84 ms"),
            (999.4, "999 ms"),
            (999.6, "1.0 s"),
            (4100.0, "4.1 s"),
            (664_000.0, "11m 04s"),
            (10_920_000.0, "3h 02m"),
            (532_800_000.0, "6d 4h"),
        ] {
            assert_eq!(span_ms(millis), text);
        }
        for (amount, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 kB"),
            (114_688, "112 kB"),
            (1_610_612_736, "1.5 GB"),
            (1 << 41, "2.0 TB"),
        ] {
            assert_eq!(bytes(amount), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (48_211, "48,211"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        assert_eq!(time(WallTime(0)), "1970-01-01 00:00:00Z");
    }
}
