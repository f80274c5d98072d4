//! The metrics page as an OTLP export request, for collectors that are pushed to.
//!
//! One source for both: what a scraper reads, family by family, so that the two can never differ.

use prost::Message;

mod exposition;
mod message;

use exposition::{Family, Kind, Sample, families};
use message::{
    Attribute, Data, Gauge, Histogram, HistogramPoint, Metric, Number, Request, Resource, ResourceMetrics, Scope,
    ScopeMetrics, Sum, Text,
};

/// What a request is sent as.
pub const MEDIA_TYPE: &str = "application/x-protobuf";

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`: sums count from a start.
const CUMULATIVE: i32 = 2;

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
    message(page, origin).encode_to_vec()
}

fn message(page: &str, origin: &Origin<'_>) -> Request {
    let times = Times {
        start: origin.start_unix_ms.saturating_mul(1_000_000),
        now: origin.now_unix_ms.saturating_mul(1_000_000),
    };
    let metrics =
        families(page).iter().filter(|family| !family.samples.is_empty()).map(|f| metric(f, &times)).collect();
    let scope = Scope { name: "malloc-daemon".to_owned(), version: origin.version.to_owned() };
    let attributes = vec![
        attribute("service.name", "malloc-daemon"),
        attribute("service.version", origin.version),
        attribute("service.instance.id", origin.host),
        attribute("host.name", origin.host),
    ];
    Request {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource { attributes }),
            scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics }],
        }],
    }
}

/// Nanoseconds since 1970.
struct Times {
    start: u64,
    now: u64,
}

fn metric(family: &Family<'_>, times: &Times) -> Metric {
    let points = || family.samples.iter().map(|sample| number(sample, times)).collect();
    let data = match family.kind {
        Kind::Counter => {
            Data::Sum(Sum { data_points: points(), aggregation_temporality: CUMULATIVE, is_monotonic: true })
        }
        Kind::Gauge => Data::Gauge(Gauge { data_points: points() }),
        Kind::Histogram => {
            Data::Histogram(Histogram { data_points: histograms(family, times), aggregation_temporality: CUMULATIVE })
        }
    };
    Metric { name: family.name.to_owned(), description: family.help.to_owned(), data: Some(data) }
}

fn attribute(key: &str, value: &str) -> Attribute {
    Attribute { key: key.to_owned(), value: Some(Text { string_value: Some(value.to_owned()) }) }
}

fn number(sample: &Sample<'_>, times: &Times) -> Number {
    Number {
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        as_double: Some(sample.value),
        attributes: sample.labels.iter().map(|(name, value)| attribute(name, value)).collect(),
    }
}

/// One point for each set of labels; the page's buckets are cumulative, OTLP's are not.
fn histograms(family: &Family<'_>, times: &Times) -> Vec<HistogramPoint> {
    let mut points: Vec<HistogramPoint> = Vec::new();
    let mut below = 0;
    for sample in &family.samples {
        let own = sample.labels.iter().filter(|(name, _)| *name != "le");
        let attributes: Vec<Attribute> = own.map(|(name, value)| attribute(name, value)).collect();
        if points.last().is_none_or(|point| point.attributes != attributes) {
            points.push(HistogramPoint {
                start_time_unix_nano: times.start,
                time_unix_nano: times.now,
                attributes,
                ..HistogramPoint::default()
            });
            below = 0;
        }
        let Some(point) = points.last_mut() else { continue };
        match sample.suffix {
            "_sum" => point.sum = Some(sample.value),
            "_count" => point.count = whole(sample.value),
            _ => {
                let bound = sample.labels.iter().find(|(name, _)| *name == "le").and_then(|(_, le)| le.parse().ok());
                // The last bucket has no bound.
                point.explicit_bounds.extend(bound.filter(|bound: &f64| bound.is_finite()));
                point.bucket_counts.push(whole(sample.value).saturating_sub(below));
                below = whole(sample.value);
            }
        }
    }
    points
}

/// A count of the page: never negative, exact below 2^53.
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP malloc_calls Calls.\n# TYPE malloc_calls counter\n\
        malloc_calls_total{comm=\"a\\\"b\",function=\"malloc\"} 12\n\
        # HELP malloc_request_bytes Bytes.\n# TYPE malloc_request_bytes histogram\n\
        malloc_request_bytes_sum{comm=\"x\"} 40.0\nmalloc_request_bytes_count{comm=\"x\"} 5\n\
        malloc_request_bytes_bucket{le=\"15.0\",comm=\"x\"} 3\nmalloc_request_bytes_bucket{le=\"+Inf\",comm=\"x\"} 5\n\
        malloc_request_bytes_sum{comm=\"y\"} 1.0\nmalloc_request_bytes_count{comm=\"y\"} 1\n\
        malloc_request_bytes_bucket{le=\"15.0\",comm=\"y\"} 1\nmalloc_request_bytes_bucket{le=\"+Inf\",comm=\"y\"} 1\n\
        # HELP malloc_complete One.\n# TYPE malloc_complete gauge\nmalloc_complete 1\n# EOF\n";

    fn sent(page: &str) -> (Vec<Attribute>, Vec<Metric>) {
        let origin =
            Origin { version: "1.2.3", host: "h", start_unix_ms: 1_700_000_000_000, now_unix_ms: 1_700_000_000_500 };
        let mut request = Request::decode(&*request(page, &origin)).expect("a message");
        let mut resource = request.resource_metrics.remove(0);
        (resource.resource.expect("a resource").attributes, resource.scope_metrics.remove(0).metrics)
    }

    #[test]
    fn the_request_says_who_where_and_when() {
        let (attributes, metrics) = sent(PAGE);
        assert!(attributes.contains(&attribute("service.name", "malloc-daemon")));
        assert!(attributes.contains(&attribute("host.name", "h")));
        let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        assert!(sum.is_monotonic);
        let point = &sum.data_points[0];
        assert_eq!(point.start_time_unix_nano, 1_700_000_000_000_000_000);
        assert_eq!(point.time_unix_nano, 1_700_000_000_500_000_000);
        assert_eq!(point.attributes, [attribute("comm", "a\"b"), attribute("function", "malloc")]);
        assert_eq!(point.as_double, Some(12.0));
    }

    #[test]
    fn cumulative_buckets_become_counts_of_their_own() {
        let (_, metrics) = sent(PAGE);
        let Some(Data::Histogram(histogram)) = &metrics[1].data else { panic!("{:?}", metrics[1]) };
        let [x, y] = &histogram.data_points[..] else { panic!("{histogram:?}") };
        assert_eq!((x.count, x.sum), (5, Some(40.0)));
        assert_eq!((&x.bucket_counts[..], &x.explicit_bounds[..]), (&[3, 2][..], &[15.0][..]));
        assert_eq!(y.bucket_counts, [1, 0]);
        let Some(Data::Gauge(gauge)) = &metrics[2].data else { panic!("{:?}", metrics[2]) };
        assert_eq!(gauge.data_points[0].as_double, Some(1.0));
    }

    #[test]
    fn no_line_of_the_page_is_left_out() {
        use crate::report::prometheus::{Format, Totals, render};
        use crate::report::sample;
        let mut totals = Totals::default();
        totals.feed(&sample::lossy());
        let page = render(&totals, "0.1.0", Format::OpenMetrics);
        let (_, metrics) = sent(&page);
        let lines = page.lines().filter(|line| !line.starts_with('#')).count();
        let points = metrics.iter().map(|metric| match metric.data.as_ref().expect("data") {
            Data::Gauge(gauge) => gauge.data_points.len(),
            Data::Sum(sum) => sum.data_points.len(),
            // A line for each bucket, the sum and the count.
            Data::Histogram(histogram) => histogram.data_points.iter().map(|p| p.bucket_counts.len() + 2).sum(),
        });
        assert_eq!(points.sum::<usize>(), lines);
    }
}
