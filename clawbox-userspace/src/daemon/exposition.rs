//! The daemon's numbers as metrics: their names, what they mean, and what they are told apart by. Series of
//! a single sandbox are there while it runs, so that their number is bounded by what runs.

use std::time::{Duration, SystemTime};

use nix::sys::resource::{UsageWho, getrusage};
use prometheus::core::Collector;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Histogram, HistogramOpts};

use super::Daemon;
use super::recording::Recording;
use super::usage;
use super::watchdog::REASONS;
use crate::audit::counted::Counted;
use crate::sandbox::control::Answer;
use crate::sandbox::figures::Figures;

/// Seconds that a change of policy takes, at its steps.
const STEPS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// Changes of policies since the daemon's start.
pub struct Changes {
    changed: u64,
    refused: u64,
    unloadable: u64,
    /// None where the steps were no steps.
    seconds: Option<Histogram>,
}

impl Changes {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        let options = HistogramOpts::new(
            "clawbox_policy_change_seconds",
            "From a new policy's text to the kernel's deciding by it.",
        );
        let seconds = Histogram::with_opts(options.buckets(STEPS.to_vec())).ok();
        Self { changed: 0, refused: 0, unloadable: 0, seconds }
    }

    /// Counts what came of a question to a sandbox, if it was for another policy.
    pub fn count(&mut self, answer: &Answer, took: Duration) {
        match answer {
            Answer::Changed { .. } | Answer::Approved { generation: Some(_), .. } => {
                self.changed += 1;
                if let Some(seconds) = &self.seconds {
                    seconds.observe(took.as_secs_f64());
                }
            }
            Answer::DoesNotLoad { .. } => self.unloadable += 1,
            Answer::Refused { .. } => self.refused += 1,
            Answer::Waiting { .. } | Answer::Approved { .. } | Answer::Denied { .. } => {}
        }
    }
}

impl Default for Changes {
    fn default() -> Self {
        Self::new()
    }
}

/// Families in the making.
struct Families(Vec<MetricFamily>);

/// A series: what it is told apart by, and its value.
type Series<'a> = (Vec<(&'static str, &'a str)>, f64);

impl Families {
    fn add<'a>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = Series<'a>>,
    ) {
        let metric = |(labels, value): Series<'_>| {
            let labels = labels.into_iter().map(|(name, value)| {
                let mut label = LabelPair::default();
                label.set_name(name.to_owned());
                label.set_value(value.to_owned());
                label
            });
            let mut metric = Metric::from_label(labels.collect());
            if kind == MetricType::COUNTER {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            } else {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            metric
        };
        let metrics: Vec<Metric> = series.into_iter().map(metric).collect();
        if metrics.is_empty() {
            // A family has a series or is not there: the format has no other way to say none.
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.add(MetricType::COUNTER, name, help, [(Vec::new(), float(value))]);
    }

    fn counters<'a>(&mut self, name: &str, help: &str, all: impl IntoIterator<Item = Series<'a>>) {
        self.add(MetricType::COUNTER, name, help, all);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.add(MetricType::GAUGE, name, help, [(Vec::new(), value)]);
    }

    fn gauges<'a>(&mut self, name: &str, help: &str, all: impl IntoIterator<Item = Series<'a>>) {
        self.add(MetricType::GAUGE, name, help, all);
    }
}

/// Counts beyond 2^53 lose their last digit, as everything in this format does.
fn float(count: u64) -> f64 {
    count as f64
}

impl Daemon {
    /// All metrics at this moment.
    pub(super) fn families(&mut self) -> Vec<MetricFamily> {
        let figures = self.host.figures();
        let mut all = Families(Vec::new());
        self.about_itself(&mut all);
        self.about_sandboxes(&mut all);
        decisions(&mut all, &figures.all);
        resolver(&mut all, &figures.all);
        tables(&mut all, &figures);
        self.about_changes(&mut all);
        self.about_watchdog(&mut all);
        self.about_recording(&mut all);
        process(&mut all);
        all.0
    }

    fn about_itself(&self, all: &mut Families) {
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        all.gauges("clawbox_build_info", "Which build this is; always 1.", [(version, 1.0)]);
        let since = self.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let help = "When the daemon was started, in seconds since the epoch.";
        all.gauge("clawbox_start_time_seconds", help, since.as_secs_f64());
        let lsm = f64::from(u8::from(self.host.lsm().is_active()));
        all.gauge("clawbox_bpf_lsm_active", "Whether BPF LSM programs decide about files.", lsm);
        let waiting: usize = self.host.sandboxes().map(|sandbox| sandbox.waiting()).sum();
        all.gauge("clawbox_sandboxes", "Sandboxes that run.", float(self.members.len() as u64));
        let help = "Connections that wait for an answer.";
        all.gauge("clawbox_connections_waiting", help, float(waiting as u64));
    }

    fn about_sandboxes(&mut self, all: &mut Families) {
        let mut series: Vec<(&str, &'static str, &'static str, u64)> = Vec::new();
        for (number, member) in &self.members {
            let Some(counted) = self.host.counted(*number) else { continue };
            let told = counted.decisions().filter(|(.., count)| *count > 0);
            series.extend(
                told.map(|(class, verdict, count)| (member.id.as_str(), class, verdict, count)),
            );
        }
        all.counters(
            "clawbox_sandbox_decisions_total",
            "Decisions about a sandbox that runs, as its audit trail has them.",
            series.into_iter().map(|(id, class, verdict, count)| {
                (vec![("sandbox", id), ("class", class), ("verdict", verdict)], float(count))
            }),
        );
    }

    fn about_watchdog(&self, all: &mut Families) {
        let watchdog = &self.watchdog;
        let help = "Times that it was looked whether what enforces is attached and denies.";
        all.counter("clawbox_watchdog_rounds_total", help, watchdog.rounds);
        let help = "When that was last, in seconds since the epoch.";
        let last = watchdog.last.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        all.gauge("clawbox_watchdog_last_round_timestamp_seconds", help, last.as_secs_f64());
        let help = "What was not as it has to be in the last round and could not be put right.";
        all.gauge("clawbox_watchdog_failing", help, float(watchdog.failing.len() as u64));
        all.counters(
            "clawbox_watchdog_alarms_total",
            "What was not as it has to be, by what was wrong; put right or not.",
            REASONS.map(|reason| {
                let count = watchdog.alarms.get(reason).copied().unwrap_or(0);
                (vec![("reason", reason)], float(count))
            }),
        );
    }

    fn about_recording(&self, all: &mut Families) {
        let Recording { condition, stops, .. } = &self.recording;
        let flag = |is: bool| float(u64::from(is));
        let help = "Whether the audit store cannot be written, for want of room or otherwise.";
        all.gauge("clawbox_audit_store_failing", help, flag(condition.failing.is_some()));
        let help = "Whether every sandbox is denied everything because nothing can be recorded.";
        all.gauge("clawbox_audit_allows_stopped", help, flag(self.host.is_paused()));
        let help = "Times that this began since the daemon's start.";
        all.counter("clawbox_audit_allows_stops_total", help, *stops);
        let help = "Events of segments that were removed from the audit store, of age or for room.";
        all.counter("clawbox_audit_removed_events_total", help, condition.removed_events);
    }

    fn about_changes(&self, all: &mut Families) {
        let Changes { changed, refused, unloadable, seconds } = &self.changes;
        let each = [("changed", changed), ("refused", refused), ("does-not-load", unloadable)];
        all.counters(
            "clawbox_policy_changes_total",
            "Changes of a running sandbox's policy that were asked for, by what came of them.",
            each.map(|(outcome, count)| (vec![("outcome", outcome)], float(*count))),
        );
        all.0.extend(seconds.iter().flat_map(Collector::collect));
    }
}

fn decisions(all: &mut Families, counted: &Counted) {
    all.counters(
        "clawbox_decisions_total",
        "Decisions about all sandboxes since the daemon's start, of those that have ended too.",
        counted.decisions().map(|(class, verdict, count)| {
            (vec![("class", class), ("verdict", verdict)], float(count))
        }),
    );
    all.counters(
        "clawbox_events_lost_total",
        "Events that happened and are in no audit trail, by kind, as gap records tell them.",
        counted.lost().map(|(kind, count)| (vec![("kind", kind)], float(count))),
    );
    let help = "Connections that no rule names and that began to wait for an answer.";
    all.counter("clawbox_connections_held_total", help, counted.held);
    let answers = [("approved", counted.approved), ("refused", counted.refused)];
    all.counters(
        "clawbox_connections_answered_total",
        "Connections that waited, by their answer; one that nobody answered in time is refused.",
        answers.map(|(answer, count)| (vec![("answer", answer)], float(count))),
    );
}

fn resolver(all: &mut Families, counted: &Counted) {
    all.counters(
        "clawbox_resolver_questions_total",
        "Questions to the sandboxes' resolvers, by what came of them: the reason in their records.",
        counted.questions.iter().map(|(why, count)| (vec![("reason", *why)], float(*count))),
    );
    let help = "Questions that were answered without asking a name server.";
    all.counter("clawbox_resolver_cache_hits_total", help, counted.known);
    let help = "Questions that name servers were asked.";
    all.counter("clawbox_resolver_upstream_questions_total", help, counted.asked);
    let help = "Questions that no name server answered.";
    all.counter("clawbox_resolver_upstream_failures_total", help, counted.unanswered);
    let seconds = Duration::from_millis(counted.waited_ms).as_secs_f64();
    let help = "Time that questions have waited for name servers, all together.";
    all.counters("clawbox_resolver_upstream_seconds_total", help, [(Vec::new(), seconds)]);
}

fn tables(all: &mut Families, figures: &Figures) {
    let each = |count: fn(&crate::kernel::fill::Fill) -> u64| {
        let fills = figures.fills.iter();
        fills.map(move |fill| (vec![("table", fill.table)], float(count(fill))))
    };
    let help = "Entries of a kernel table, as they were counted at most a minute ago.";
    all.gauges("clawbox_table_entries", help, each(|fill| fill.entries));
    let help = "Entries that a kernel table has room for.";
    all.gauges("clawbox_table_entries_max", help, each(|fill| fill.room));
    let ring = figures.ring;
    all.gauge("clawbox_ring_size_bytes", "Size of the event rings, together.", float(ring.size));
    let help = "What waits to be read in the event rings.";
    all.gauge("clawbox_ring_pending_bytes", help, float(ring.pending));
    let help = "The most that has waited in the event rings since the daemon's start.";
    all.gauge("clawbox_ring_pending_max_bytes", help, float(ring.peak));
}

/// By the names that every client library has for them.
fn process(all: &mut Families) {
    let help = "Memory of the daemon's that is in memory.";
    all.gauge("process_resident_memory_bytes", help, float(usage::resident()));
    if let Some(open) = usage::descriptors() {
        all.gauge("process_open_fds", "Descriptors that the daemon has open.", float(open));
    }
    if let Ok(used) = getrusage(UsageWho::RUSAGE_SELF) {
        let times = [used.user_time(), used.system_time()];
        let seconds = times.map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6);
        let help = "Time that the daemon has had of processors.";
        all.counters("process_cpu_seconds_total", help, [(Vec::new(), seconds.iter().sum())]);
    }
}
