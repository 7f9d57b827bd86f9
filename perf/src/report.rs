//! What is reported: a table for people, JSON for everything else.

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What one round measured, by the keys of [`METRICS`].
pub type Figures = BTreeMap<&'static str, f64>;

/// Something that is measured.
pub struct Metric {
    pub key: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    /// What slotstream has to stay under.
    bars: &'static [Bar],
    /// Who has this figure beside the program, and is compared with it.
    other: Kind,
}

#[derive(Clone, Copy)]
enum Bar {
    /// So many times the figure of the one that it is compared with.
    Ratio(f64),
    /// A number of its own.
    Value(f64),
}

const fn both(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    bars: &'static [Bar],
) -> Metric {
    Metric {
        key,
        title,
        unit,
        bars,
        other: Kind::Replica,
    }
}

/// What a plain client's commands cost too.
const fn plain(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    bars: &'static [Bar],
) -> Metric {
    Metric {
        key,
        title,
        unit,
        bars,
        other: Kind::Plain,
    }
}

const fn ours(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    bars: &'static [Bar],
) -> Metric {
    Metric {
        key,
        title,
        unit,
        bars,
        other: Kind::Program,
    }
}

/// Below a third of what redis-shake 4.6 takes (3.9 us), in microseconds.
const STREAM_CPU_US: f64 = 1.3;
/// A command that must not be repeated goes out in a transaction with a watermark, together with others.
const INCR_RATIO: f64 = 1.5;
/// 64 MiB and 16 MiB for each of three lanes.
const MEMORY_MIB: f64 = 64.0 + 3.0 * 16.0;

#[rustfmt::skip]
pub const METRICS: [Metric; 31] = [
    both("copy_cpu_us_per_key", "First copy: CPU per key", "us", &[Bar::Ratio(1.0)]),
    both("copy_system_us_per_key", "  of it in the kernel", "us", &[]),
    ours("copy_target_cpu_us_per_key", "  target's masters, per key", "us", &[]),
    both("copy_seconds", "First copy: time", "s", &[]),
    both("stream_cpu_us_per_command", "Stream: CPU per 64-byte SET", "us", &[Bar::Ratio(1.0), Bar::Value(STREAM_CPU_US)]),
    both("stream_system_us_per_command", "  of it in the kernel", "us", &[]),
    plain("stream_target_cpu_us_per_command", "  target's masters, per SET", "us", &[]),
    ours("stream_records_per_second", "  records on them, all together", "1/s", &[]),
    both("stream_source_cpu_us_per_command", "  source's masters, per SET", "us", &[]),
    both("load_seconds", "Load: time", "s", &[]),
    both("catch_up_seconds", "Caught up, since the load began", "s", &[Bar::Ratio(1.2)]),
    both("catch_up_after_load_ms", "  since the load ended", "ms", &[]),
    both("incr_cpu_us_per_command", "Stream: CPU per INCR, all slots", "us", &[]),
    plain("incr_target_cpu_us_per_command", "  target's masters, per INCR", "us", &[Bar::Ratio(INCR_RATIO)]),
    ours("incr_per_transaction", "  INCRs per transaction", "", &[]),
    both("incr_source_cpu_us_per_command", "  source's masters, per INCR", "us", &[]),
    both("incr_catch_up_seconds", "  caught up", "s", &[]),
    both("hot_incr_cpu_us_per_command", "Stream: CPU per INCR, 16 keys", "us", &[]),
    plain("hot_incr_target_cpu_us_per_command", "  target's masters, per INCR", "us", &[Bar::Ratio(INCR_RATIO)]),
    ours("hot_incr_per_transaction", "  INCRs per transaction", "", &[]),
    both("hot_incr_source_cpu_us_per_command", "  source's masters, per INCR", "us", &[]),
    both("hot_incr_catch_up_seconds", "  caught up", "s", &[]),
    both("lag_p50_ms", "Visible lag p50", "ms", &[Bar::Ratio(1.3)]),
    both("lag_p99_ms", "Visible lag p99", "ms", &[]),
    both("lag_polled_p50_ms", "  p50, polled without pause", "ms", &[Bar::Ratio(1.3)]),
    both("lag_polled_p99_ms", "  p99, polled without pause", "ms", &[]),
    both("idle_cpu_percent", "Idle: CPU", "%", &[]),
    both("peak_memory_mib", "Peak memory", "MiB", &[]),
    ours("large_peak_memory_mib", "Large snapshot: peak memory", "MiB", &[Bar::Value(MEMORY_MIB)]),
    ours("large_copy_mb_per_second", "  rate", "MB/s", &[]),
    ours("large_copy_cpu_seconds_per_gb", "  CPU", "s/GB", &[]),
];

/// Whose figures they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Program,
    Replica,
    /// Of which only the lag is measured.
    Relay,
    /// A client that writes into the target itself.
    Plain,
}

/// All rounds of one contender.
pub struct Series {
    pub name: String,
    pub kind: Kind,
    pub rounds: Vec<Figures>,
}

impl Series {
    /// The median over the rounds that have the figure.
    fn median(&self, key: &str) -> Option<f64> {
        let rounds = self.rounds.iter();
        let mut values: Vec<f64> = rounds.filter_map(|round| round.get(key).copied()).collect();
        (!values.is_empty()).then(|| percentile(&mut values, 50.0))
    }

    /// Fails where a figure is missing or is no number.
    pub fn check(&self) -> Result<()> {
        for metric in METRICS {
            match self.median(metric.key) {
                Some(value) if value.is_finite() && value >= 0.0 => {}
                None if matches!(self.kind, Kind::Replica | Kind::Plain)
                    && metric.other != self.kind => {}
                None if self.kind == Kind::Relay && !metric.key.starts_with("lag_") => {}
                found => bail!("{} of {} is {found:?}", metric.key, self.name),
            }
        }
        Ok(())
    }
}

/// The value below which so many percent lie; the nearest one that is there.
pub fn percentile(values: &mut [f64], percent: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let rank = (percent / 100.0 * last as f64).round() as usize;
    values.get(rank).copied().unwrap_or(f64::NAN)
}

/// Medians of all contenders beside each other; ratios and bars are those of the first one.
pub fn table(series: &[Series]) -> String {
    let mut text = format!("{:<34}{:<6}", "median of the rounds", "");
    for one in series {
        let _ = write!(text, "{:>14}", one.name);
    }
    text.push_str("   ratio  bar\n");
    let measured = |metric: &Metric| series.iter().any(|one| one.median(metric.key).is_some());
    for metric in METRICS.into_iter().filter(measured) {
        let _ = write!(text, "{:<34}{:<6}", metric.title, metric.unit);
        for one in series {
            let shown = one.median(metric.key).map_or("-".to_owned(), digits);
            let _ = write!(text, "{shown:>14}");
        }
        let ratio = ratio(series, &metric).map_or(String::new(), |ratio| format!("{ratio:.2}x"));
        let _ = write!(text, "{ratio:>8}");
        for (bar, met) in verdicts(series, &metric) {
            let _ = write!(text, "  {} {bar}", if met { "met" } else { "MISSED" });
        }
        let kept = text.trim_end().len();
        text.truncate(kept);
        text.push('\n');
    }
    text
}

/// All rounds and their medians; `about` says what was run where.
pub fn to_json(about: Value, series: &[Series]) -> Value {
    let contenders: Map<String, Value> = series
        .iter()
        .map(|one| {
            let medians: BTreeMap<_, _> = METRICS
                .iter()
                .filter_map(|metric| Some((metric.key, one.median(metric.key)?)))
                .collect();
            let value = json!({ "median": medians, "rounds": one.rounds });
            (one.name.clone(), value)
        })
        .collect();
    let ratios = |other: Kind| -> BTreeMap<_, _> {
        METRICS
            .iter()
            .filter(|metric| metric.other == other)
            .filter_map(|metric| Some((metric.key, ratio(series, metric)?)))
            .collect()
    };
    let bars: Vec<Value> = METRICS
        .iter()
        .flat_map(|metric| {
            let verdicts = verdicts(series, metric).into_iter();
            verdicts.map(|(bar, met)| json!({ "metric": metric.key, "bar": bar, "met": met }))
        })
        .collect();
    json!({ "about": about, "contenders": contenders, "ratio_to_replica": ratios(Kind::Replica), "ratio_to_plain": ratios(Kind::Plain), "bars": bars })
}

/// The first contender's figure in units of the one's that it is compared with.
fn ratio(series: &[Series], metric: &Metric) -> Option<f64> {
    let first = series.first().filter(|one| one.kind == Kind::Program)?;
    let mut others = series.iter().skip(1);
    let other = others.find(|one| one.kind == metric.other && one.kind != Kind::Program)?;
    let ratio = first.median(metric.key)? / other.median(metric.key)?;
    ratio.is_finite().then_some(ratio)
}

/// Each bar of a metric and whether the first contender stays under it.
fn verdicts(series: &[Series], metric: &Metric) -> Vec<(String, bool)> {
    let own = series.first().filter(|one| one.kind == Kind::Program);
    let value = own.and_then(|one| one.median(metric.key));
    let ratio = ratio(series, metric);
    metric
        .bars
        .iter()
        .filter_map(|bar| match *bar {
            Bar::Ratio(limit) => Some((format!("under {limit}x"), ratio? < limit)),
            Bar::Value(limit) => Some((format!("under {limit} {}", metric.unit), value? < limit)),
        })
        .collect()
}

fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, kind: Kind, lags: &[f64]) -> Series {
        let round = |lag: &f64| Figures::from([("lag_p50_ms", *lag)]);
        Series {
            name: name.to_owned(),
            kind,
            rounds: lags.iter().map(round).collect(),
        }
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let mut values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 50.0), 50.0);
        assert_eq!(percentile(&mut values, 99.0), 99.0);
        assert_eq!(percentile(&mut [7.0], 99.0), 7.0);
        assert!(percentile(&mut [], 50.0).is_nan());
    }

    #[test]
    fn a_bar_is_held_against_the_replica_of_the_same_run() {
        let replica = series("replica", Kind::Replica, &[1.0, 9.0, 2.0]);
        let slow = [series("slow", Kind::Program, &[2.7]), replica];
        assert_eq!(
            to_json(json!({}), &slow)["ratio_to_replica"]["lag_p50_ms"],
            1.35
        );
        assert!(table(&slow).contains("MISSED under 1.3x"));
        let [_, replica] = slow;
        let quick = [series("quick", Kind::Program, &[2.5]), replica];
        assert!(table(&quick).contains("1.25x  met under 1.3x"));
    }

    #[test]
    fn a_missing_figure_is_noticed() {
        let error = series("one", Kind::Program, &[1.0]).check().unwrap_err();
        assert!(error.to_string().contains("is None"), "{error}");
    }
}
