//! Amounts as people read them.

use model::units::Millis;

/// A time that passed: `400 ms`, `4.1 s`, `11m 04s`, `3h 20m`, `6d 4h`.
pub fn span(span: Millis) -> String {
    let (millis, seconds) = (span.0, span.0 / 1000);
    match seconds {
        0 => format!("{millis} ms"),
        1..60 => format!("{:.1} s", span.seconds()),
        60..3_600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// A size: `0 B`, `112 kB`, `1.5 GB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well_at_every_size() {
        let spans =
            [(0, "0 ms"), (4_100, "4.1 s"), (664_000, "11m 04s"), (12_000_000, "3h 20m"), (532_800_000, "6d 4h")];
        for (millis, text) in spans {
            assert_eq!(span(Millis(millis)), text);
        }
        for (size, text) in [(0, "0 B"), (1_023, "1023 B"), (114_688, "112 kB"), (3 << 29, "1.5 GB")] {
            assert_eq!(bytes(size), text);
        }
    }
}
