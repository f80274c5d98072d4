//! Reads the metrics page that this program wrote, family by family.

/// What a family's samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows until the daemon restarts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets, a count and a sum.
    Histogram,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    /// What follows the family's name: empty, `_total`, `_bucket`, `_count` or `_sum`.
    pub suffix: &'a str,
    /// Names and values, unescaped.
    pub labels: Vec<(&'a str, String)>,
    /// The value.
    pub value: f64,
}

/// The lines of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family<'a> {
    /// As OpenMetrics has it: a counter's without `_total`.
    pub name: &'a str,
    /// What it means.
    pub help: &'a str,
    /// What its samples are.
    pub kind: Kind,
    /// Its lines.
    pub samples: Vec<Sample<'a>>,
}

/// The families of an OpenMetrics page, as [`crate::report::prometheus`] writes it. Lines that are not of that form are
/// left out.
#[must_use]
pub fn families(page: &str) -> Vec<Family<'_>> {
    let mut all: Vec<Family<'_>> = Vec::new();
    let mut help = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, text)| text.trim_end_matches('.'));
        } else if let Some((name, word)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let kind = match word {
                "counter" => Kind::Counter,
                "gauge" => Kind::Gauge,
                "histogram" => Kind::Histogram,
                _ => continue,
            };
            all.push(Family { name, help, kind, samples: Vec::new() });
        } else if let Some(family) = all.last_mut()
            && let Some(sample) = line.strip_prefix(family.name).and_then(sample)
        {
            family.samples.push(sample);
        }
    }
    all
}

/// A line without its family's name: `_total{comm="x"} 1`.
fn sample(rest: &str) -> Option<Sample<'_>> {
    let end = rest.find(['{', ' '])?;
    let (suffix, mut rest) = rest.split_at(end);
    let mut labels = Vec::new();
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            if let Some(after) = inner.strip_prefix('}') {
                rest = after;
                break;
            }
            let (name, quoted) = inner.split_once("=\"")?;
            let (value, after) = unescape(quoted)?;
            labels.push((name, value));
            inner = after.strip_prefix(',').unwrap_or(after);
        }
    }
    Some(Sample { suffix, labels, value: rest.strip_prefix(' ')?.parse().ok()? })
}

/// The text up to the closing quote, and what follows it.
fn unescape(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_page_is_read_family_by_family() {
        let page = "# HELP a_b Things.\n# TYPE a_b counter\na_b_total{x=\"1\",y=\"2\"} 7\na_b_total 8\n\
                    # HELP c Others.\n# TYPE c gauge\nc 1.5\n# EOF\n";
        let all = families(page);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].name, all[0].help, all[0].kind), ("a_b", "Things", Kind::Counter));
        assert_eq!(all[0].samples[0].labels, [("x", "1".to_owned()), ("y", "2".to_owned())]);
        assert_eq!((all[0].samples[1].suffix, all[0].samples[1].value), ("_total", 8.0));
        assert_eq!(all[1].samples, [Sample { suffix: "", labels: vec![], value: 1.5 }]);
    }

    proptest! {
        #[test]
        fn a_label_comes_back_as_it_was(value in "\\PC*|[\"\\\\\n,{}= ]{0,12}", number in any::<u32>()) {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let page = format!("# TYPE m gauge\nm{{comm=\"{escaped}\",f=\"g\"}} {number}\n");
            let all = families(&page);
            prop_assert_eq!(&all[0].samples, &[Sample {
                suffix: "",
                labels: vec![("comm", value), ("f", "g".to_owned())],
                value: f64::from(number),
            }]);
        }

        #[test]
        fn no_page_is_too_strange(page in "(# TYPE [a-z]{0,3} (counter|gauge|x)\n|[a-z]{0,3}[{}\"\\\\=, 0-9]{0,9}\n)*") {
            let _ = families(&page);
        }
    }
}
