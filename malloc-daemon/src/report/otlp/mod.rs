//! The metrics page as an OTLP export request in JSON, for collectors that are pushed to.
//!
//! One source for both: what a scraper reads, family by family, so that the two can never differ. The form is that of
//! opentelemetry-proto 1.x, `ExportMetricsServiceRequest`, in its JSON encoding (64-bit integers are strings).

use serde::Serialize;

mod exposition;

use exposition::{Family, Kind, Sample, families};

/// OTLP's word for sums that count from a start: `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u8 = 2;

/// Where the figures come from and when they are true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The daemon's version.
    pub version: &'a str,
    /// The machine's name.
    pub host: &'a str,
    /// When counting began, milliseconds since 1970.
    pub start_unix_ms: u64,
    /// Now, milliseconds since 1970.
    pub now_unix_ms: u64,
}

/// The body of a POST to a collector's `/v1/metrics`, from the OpenMetrics page.
#[must_use]
pub fn request(page: &str, origin: &Origin<'_>) -> Vec<u8> {
    let times = Times { start: nanoseconds(origin.start_unix_ms), now: nanoseconds(origin.now_unix_ms) };
    let families = families(page);
    let metrics = families.iter().filter_map(|family| metric(family, &times)).collect();
    let attribute = |key, value: &str| Attribute { key, value: Text { string_value: value.to_owned() } };
    let request = Request {
        resource_metrics: [ResourceMetrics {
            resource: Resource {
                attributes: vec![
                    attribute("service.name", "malloc-daemon"),
                    attribute("service.version", origin.version),
                    attribute("service.instance.id", origin.host),
                    attribute("host.name", origin.host),
                ],
            },
            scope_metrics: [ScopeMetrics { scope: Scope { name: "malloc-daemon", version: origin.version }, metrics }],
        }],
    };
    serde_json::to_vec(&request).unwrap_or_default()
}

fn nanoseconds(milliseconds: u64) -> String {
    (u128::from(milliseconds) * 1_000_000).to_string()
}

struct Times {
    start: String,
    now: String,
}

fn metric<'a>(family: &'a Family<'a>, times: &'a Times) -> Option<Metric<'a>> {
    let mut metric = Metric { name: family.name, description: family.help, sum: None, gauge: None, histogram: None };
    let points = || family.samples.iter().map(|sample| number(sample, times)).collect();
    match family.kind {
        Kind::Counter => {
            metric.sum = Some(Sum { aggregation_temporality: CUMULATIVE, is_monotonic: true, data_points: points() });
        }
        Kind::Gauge => metric.gauge = Some(Gauge { data_points: points() }),
        Kind::Histogram => {
            let data_points = histograms(family, times);
            metric.histogram = Some(Histogram { aggregation_temporality: CUMULATIVE, data_points });
        }
    }
    (!family.samples.is_empty()).then_some(metric)
}

fn attributes<'a>(labels: impl Iterator<Item = &'a (&'a str, String)>) -> Vec<Attribute<'a>> {
    labels.map(|(key, value)| Attribute { key, value: Text { string_value: value.clone() } }).collect()
}

fn number<'a>(sample: &'a Sample<'a>, times: &'a Times) -> Number<'a> {
    Number {
        attributes: attributes(sample.labels.iter()),
        start_time_unix_nano: &times.start,
        time_unix_nano: &times.now,
        as_double: sample.value,
    }
}

/// One point for each set of labels; the page's buckets are cumulative, OTLP's are not.
fn histograms<'a>(family: &'a Family<'a>, times: &'a Times) -> Vec<HistogramPoint<'a>> {
    let mut points: Vec<HistogramPoint<'a>> = Vec::new();
    let mut last: Option<Vec<&(&str, String)>> = None;
    let mut below = 0.0;
    for sample in &family.samples {
        let own: Vec<&(&str, String)> = sample.labels.iter().filter(|(name, _)| *name != "le").collect();
        if last.as_ref() != Some(&own) {
            points.push(HistogramPoint {
                attributes: attributes(own.iter().copied()),
                start_time_unix_nano: &times.start,
                time_unix_nano: &times.now,
                count: String::new(),
                sum: 0.0,
                bucket_counts: Vec::new(),
                explicit_bounds: Vec::new(),
            });
            last = Some(own);
            below = 0.0;
        }
        let Some(point) = points.last_mut() else { continue };
        match sample.suffix {
            "_sum" => point.sum = sample.value,
            "_count" => point.count = whole(sample.value),
            _ => {
                let bound = sample.labels.iter().find(|(name, _)| *name == "le").and_then(|(_, le)| le.parse().ok());
                // The last bucket has no bound.
                point.explicit_bounds.extend(bound.filter(|bound: &f64| bound.is_finite()));
                point.bucket_counts.push(whole(sample.value - below));
                below = sample.value;
            }
        }
    }
    points
}

/// Counts below 2^53 are exact; a negative difference cannot be.
fn whole(value: f64) -> String {
    format!("{:.0}", value.max(0.0))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    resource_metrics: [ResourceMetrics<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceMetrics<'a> {
    resource: Resource<'a>,
    scope_metrics: [ScopeMetrics<'a>; 1],
}

#[derive(Serialize)]
struct Resource<'a> {
    attributes: Vec<Attribute<'a>>,
}

#[derive(Serialize)]
struct ScopeMetrics<'a> {
    scope: Scope<'a>,
    metrics: Vec<Metric<'a>>,
}

#[derive(Serialize)]
struct Scope<'a> {
    name: &'a str,
    version: &'a str,
}

#[derive(Serialize)]
struct Metric<'a> {
    name: &'a str,
    description: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sum: Option<Sum<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gauge: Option<Gauge<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    histogram: Option<Histogram<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sum<'a> {
    aggregation_temporality: u8,
    is_monotonic: bool,
    data_points: Vec<Number<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Gauge<'a> {
    data_points: Vec<Number<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Histogram<'a> {
    aggregation_temporality: u8,
    data_points: Vec<HistogramPoint<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Number<'a> {
    attributes: Vec<Attribute<'a>>,
    start_time_unix_nano: &'a str,
    time_unix_nano: &'a str,
    as_double: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HistogramPoint<'a> {
    attributes: Vec<Attribute<'a>>,
    start_time_unix_nano: &'a str,
    time_unix_nano: &'a str,
    count: String,
    sum: f64,
    bucket_counts: Vec<String>,
    explicit_bounds: Vec<f64>,
}

#[derive(Serialize)]
struct Attribute<'a> {
    key: &'a str,
    value: Text,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Text {
    string_value: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const PAGE: &str = "# HELP malloc_calls Calls.\n# TYPE malloc_calls counter\n\
        malloc_calls_total{comm=\"a\\\"b\",function=\"malloc\"} 12\n\
        # HELP malloc_request_bytes Bytes.\n# TYPE malloc_request_bytes histogram\n\
        malloc_request_bytes_sum{comm=\"x\"} 40.0\nmalloc_request_bytes_count{comm=\"x\"} 5\n\
        malloc_request_bytes_bucket{le=\"15.0\",comm=\"x\"} 3\nmalloc_request_bytes_bucket{le=\"+Inf\",comm=\"x\"} 5\n\
        malloc_request_bytes_sum{comm=\"y\"} 1.0\nmalloc_request_bytes_count{comm=\"y\"} 1\n\
        malloc_request_bytes_bucket{le=\"15.0\",comm=\"y\"} 1\nmalloc_request_bytes_bucket{le=\"+Inf\",comm=\"y\"} 1\n\
        # HELP malloc_complete One.\n# TYPE malloc_complete gauge\nmalloc_complete 1\n# EOF\n";

    fn document() -> Value {
        let origin =
            Origin { version: "1.2.3", host: "h", start_unix_ms: 1_700_000_000_000, now_unix_ms: 1_700_000_000_500 };
        serde_json::from_slice(&request(PAGE, &origin)).expect("JSON")
    }

    #[test]
    fn the_request_says_who_where_and_when() {
        let document = document();
        let attributes = &document["resourceMetrics"][0]["resource"]["attributes"];
        assert_eq!(attributes[0]["value"]["stringValue"], "malloc-daemon");
        assert_eq!(attributes[3]["value"]["stringValue"], "h");
        let point = &document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"]["dataPoints"][0];
        assert_eq!(point["startTimeUnixNano"], "1700000000000000000");
        assert_eq!(point["timeUnixNano"], "1700000000500000000");
        assert_eq!(point["attributes"][0]["value"]["stringValue"], "a\"b");
        assert_eq!(point["asDouble"], 12.0);
    }

    #[test]
    fn cumulative_buckets_become_counts_of_their_own() {
        let document = document();
        let metrics = &document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"];
        let points = metrics[1]["histogram"]["dataPoints"].as_array().expect("points");
        assert_eq!(points.len(), 2);
        assert_eq!(points[0]["bucketCounts"], serde_json::json!(["3", "2"]));
        assert_eq!(points[0]["explicitBounds"], serde_json::json!([15.0]));
        assert_eq!((&points[0]["count"], &points[0]["sum"]), (&"5".into(), &40.0.into()));
        assert_eq!(points[1]["bucketCounts"], serde_json::json!(["1", "0"]));
        assert_eq!(metrics[2]["gauge"]["dataPoints"][0]["asDouble"], 1.0);
    }

    #[test]
    fn the_whole_page_of_a_snapshot_is_taken_over() {
        use crate::report::prometheus::{Format, Totals, render};
        use crate::report::sample;
        let mut totals = Totals::default();
        totals.feed(&sample::lossy());
        let page = render(&totals, "0.1.0", Format::OpenMetrics);
        let origin = Origin { version: "0.1.0", host: "h", start_unix_ms: 1, now_unix_ms: 2 };
        let document: Value = serde_json::from_slice(&request(&page, &origin)).expect("JSON");
        let metrics = document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"].as_array().expect("metrics");
        let with_samples = families(&page).iter().filter(|family| !family.samples.is_empty()).count();
        assert_eq!(metrics.len(), with_samples);
        let lines = page.lines().filter(|line| !line.starts_with('#')).count();
        let samples: usize = families(&page).iter().map(|family| family.samples.len()).sum();
        assert_eq!(samples, lines, "no line of the page is left out");
    }
}
