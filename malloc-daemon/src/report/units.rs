//! Numbers as people read them: thousands separated, decimal units (1 MB is 1,000,000 bytes).

/// `618427` as `618,427`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with one decimal place from 1 KB on, exact below.
pub(crate) fn bytes(value: u64) -> String {
    const UNITS: [&str; 6] = ["KB", "MB", "GB", "TB", "PB", "EB"];
    if value < 1000 {
        return format!("{value} B");
    }
    let (mut scale, mut tenths, mut name) = (1u128, 0u128, "B");
    for unit in UNITS {
        scale *= 1000;
        name = unit;
        tenths = (u128::from(value) * 10 + scale / 2) / scale;
        if tenths < 10_000 {
            break;
        }
    }
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// Bytes that matter to the last one: `131.1 KB (131,072 B)`.
pub(crate) fn exact_bytes(value: u64) -> String {
    if value < 1000 { bytes(value) } else { format!("{} ({} B)", bytes(value), count(value)) }
}

/// Nanoseconds in the unit that suits them, one decimal place.
pub(crate) fn nanoseconds(value: u64) -> String {
    const UNITS: [(&str, u128); 3] = [("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];
    let mut text = String::new();
    for (name, scale) in UNITS {
        let tenths = (u128::from(value) * 10 + scale / 2) / scale;
        text = format!("{}.{} {name}", tenths / 10, tenths % 10);
        if tenths < 10_000 {
            break;
        }
    }
    text
}

/// Milliseconds as a span that one remembers: `0.86 s`, `3 min 20 s`, `5 h 7 min`.
pub(crate) fn milliseconds(value: u64) -> String {
    let seconds = value / 1000;
    match seconds {
        0..60 => format!("{seconds}.{:02} s", value % 1000 / 10),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// The share of `part` in `whole` in percent; the whole numbers take three columns, so that the points align.
/// `None` when there is no whole.
pub(crate) fn share(part: u64, whole: u64) -> Option<String> {
    if whole == 0 {
        return None;
    }
    // Hundredths of a percent, rounded.
    let hundredths = (u128::from(part) * 10_000 + u128::from(whole) / 2) / u128::from(whole);
    Some(match hundredths {
        0 if part > 0 => " <0.01 %".to_owned(),
        0 => "  0 %".to_owned(),
        1..100 => format!("{:>3}.{:02} %", hundredths / 100, hundredths % 100),
        _ => {
            let tenths = (hundredths + 5) / 10;
            format!("{:>3}.{} %", tenths / 10, tenths % 10)
        }
    })
}

/// A bar of at most `cells` block characters, in eighths; anything above zero shows.
pub(crate) fn bar(value: u64, whole: u64, cells: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if value == 0 || whole == 0 {
        return String::new();
    }
    let full = cells as u128 * 8;
    let eighths = ((u128::from(value) * full + u128::from(whole) / 2) / u128::from(whole)).clamp(1, full);
    // At most `cells` and 7.
    let (whole_cells, rest) = ((eighths / 8) as usize, (eighths % 8) as usize);
    let mut out = "█".repeat(whole_cells);
    out.push_str(EIGHTHS.get(rest).copied().unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(618_427), "618,427");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.0 KB");
        assert_eq!(bytes(61_234_567), "61.2 MB");
        assert_eq!(exact_bytes(131_072), "131.1 KB (131,072 B)");
        assert_eq!(nanoseconds(4_100), "4.1 us");
        assert_eq!(nanoseconds(12_345_678), "12.3 ms");
        assert_eq!(milliseconds(861), "0.86 s");
        assert_eq!(milliseconds(200_000), "3 min 20 s");
        assert_eq!(milliseconds(18_420_000), "5 h 7 min");
    }

    #[test]
    fn rounding_moves_to_the_next_unit_not_to_a_thousand() {
        assert_eq!(bytes(999_950), "1.0 MB");
        assert_eq!(bytes(999_949), "999.9 KB");
        assert_eq!(nanoseconds(999_950), "1.0 ms");
    }

    #[test]
    fn a_share_above_zero_never_reads_zero() {
        assert_eq!(share(18_146, 618_427).as_deref(), Some("  2.9 %"));
        assert_eq!(share(164, 618_427).as_deref(), Some("  0.03 %"));
        assert_eq!(share(1, 618_427).as_deref(), Some(" <0.01 %"));
        assert_eq!(share(0, 7).as_deref(), Some("  0 %"));
        assert_eq!(share(7, 7).as_deref(), Some("100.0 %"));
        assert_eq!(share(0, 0), None);
    }

    #[test]
    fn a_bar_above_zero_shows() {
        assert_eq!(bar(0, 10, 24), "");
        assert_eq!(bar(1, u64::MAX, 24), "▏");
        assert_eq!(bar(10, 10, 24), "█".repeat(24));
        assert_eq!(bar(11, 10, 24), "█".repeat(24));
    }

    proptest! {
        #[test]
        fn a_bar_is_never_longer_than_its_cells(value in any::<u64>(), whole in any::<u64>(), cells in 1usize..80) {
            prop_assert!(bar(value, whole, cells).chars().count() <= cells);
        }
    }
}
