//! The counts as a table for people and as JSON, with what they are to be compared against. A target
//! that is missed changes no exit status.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::connection;
use super::maps::Maps;
use super::tree::{self, DEPTHS};
use super::{Around, Counts};

/// What a remembered allow may cost, as a multiple of nothing.
const CACHED: f64 = 1.08;
/// From which depth on it is to cost less than Landlock.
const BELOW_LANDLOCK_FROM: usize = 10;
/// What a way up may cost, as a multiple of what Landlock does.
const COLD: f64 = 1.5;

/// See the module.
#[derive(Debug)]
pub struct Table {
    counts: BTreeMap<Around, Counts>,
    /// What a sandbox's maps take.
    pub maps: Maps,
}

struct Target {
    what: String,
    is: f64,
    most: f64,
}

impl Table {
    /// An empty one.
    pub fn new() -> Self {
        Self { counts: BTreeMap::new(), maps: Maps::default() }
    }

    /// Adds a column.
    pub fn add(&mut self, around: Around, counts: Counts) {
        self.counts.insert(around, counts);
    }

    fn count(&self, around: Around, operation: &str) -> Option<f64> {
        self.counts.get(&around)?.get(operation).copied()
    }

    fn ratio(&self, around: Around, to: Around, operation: &str) -> Option<f64> {
        Some(self.count(around, operation)? / self.count(to, operation)?)
    }

    fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        let mut add = |what: String, is: Option<f64>, most| {
            targets.extend(is.map(|is| Target { what, is, most }));
        };
        for depth in DEPTHS {
            let again = format!("open-again-{depth}");
            let cached = self.ratio(Around::Hooks, Around::Nothing, &again);
            add(format!("hooks cached, depth {depth}, of nothing"), cached, CACHED);
            if depth >= BELOW_LANDLOCK_FROM {
                let beside = self.ratio(Around::Hooks, Around::Landlock, &again);
                add(format!("hooks cached, depth {depth}, of Landlock"), beside, 1.0);
            }
            for (how, name) in [("once", "first open"), ("renamed", "after a rename")] {
                let operation = format!("open-{how}-{depth}");
                let cold = self.ratio(Around::Hooks, Around::Landlock, &operation);
                add(format!("hooks cold, {name}, depth {depth}, of Landlock"), cold, COLD);
            }
        }
        targets
    }

    /// As one JSON object.
    pub fn json(&self) -> Value {
        let mut figures = Vec::new();
        for (operation, _) in operations() {
            for around in Around::ALL {
                figures.push(json!({
                    "operation": operation,
                    "around": around.name(),
                    "instructions": self.count(around, &operation),
                    "ratio": self.ratio(around, Around::Nothing, &operation),
                }));
            }
        }
        let targets: Vec<Value> = self
            .targets()
            .iter()
            .map(|it| json!({ "what": it.what, "is": it.is, "at_most": it.most }))
            .collect();
        json!({
            "kernel": crate::report::kernel(),
            "unit": "guest instructions",
            "figures": figures,
            "targets": targets,
            "maps": { "number": self.maps.number, "bytes": self.maps.bytes,
                      "largest": self.maps.largest },
        })
    }
}

/// Names in the worker's answers, and for people.
fn operations() -> Vec<(String, String)> {
    let mut operations = Vec::new();
    for (name, title) in [
        ("again", "open+close, the same file"),
        ("once", "open+close, each file once"),
        ("renamed", "open+close after a rename"),
    ] {
        for depth in DEPTHS {
            operations.push((format!("open-{name}-{depth}"), format!("{title}, depth {depth}")));
        }
    }
    let uses = connection::USES.map(|(name, title)| (name.to_owned(), title.to_owned()));
    operations.extend(uses);
    operations.push(("exec".to_owned(), "fork+exec+wait of /bin/true".to_owned()));
    operations.push(("find".to_owned(), format!("find over {} files", tree::walked())));
    operations
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}; guest instructions, and as multiples of nothing", {
            crate::report::kernel()
        })?;
        writeln!(f)?;
        write!(f, "{:<38}", "")?;
        for around in Around::ALL {
            write!(f, "{:>17}", around.name())?;
        }
        writeln!(f)?;
        for (operation, title) in operations() {
            write!(f, "{title:<38}")?;
            for around in Around::ALL {
                let count = self.count(around, &operation).unwrap_or(f64::NAN);
                let ratio = self.ratio(around, Around::Nothing, &operation).unwrap_or(f64::NAN);
                write!(f, "{count:>10.0} ×{ratio:.3}")?;
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        for target in self.targets() {
            let mark = if target.is <= target.most { "" } else { "  missed" };
            writeln!(f, "{:<52} ×{:.3}  ≤ ×{:.2}{mark}", target.what, target.is, target.most)?;
        }
        writeln!(
            f,
            "\n{} maps of one sandbox: {:.1} MiB, the largest {:.1} MiB",
            self.maps.number,
            self.maps.bytes as f64 / f64::from(1 << 20),
            self.maps.largest as f64 / f64::from(1 << 20),
        )
    }
}
