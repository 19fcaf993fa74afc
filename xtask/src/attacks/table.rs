//! The table of the threat model: a line for each row, a column for each kernel, between two marks in
//! the document. A column that was not tried keeps what it says.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail};

use super::Observed;
use crate::vm::Kernel;

const BEGIN: &str = "<!-- attacks: written by `cargo xtask attacks --write` -->";
const END: &str = "<!-- attacks: end -->";
/// What the layer of an attack that got through is called.
const NOT_STOPPED: &str = "not stopped";

/// The rows that the suite tries.
const ROWS: [(u8, &str); 34] = [
    (1, "a binary by another name, a copy, a link"),
    (2, "the loader with an allowed program"),
    (3, "code from an allowed program's environment"),
    (4, "scripts and interpreters"),
    (5, "programs without a lasting name"),
    (6, "an allowed binary overwritten or replaced"),
    (7, "another root, other mounts"),
    (8, "other ways to the same file"),
    (9, "another program's image claimed"),
    (10, "another identity's process"),
    (11, "fork, threads, daemons, reused numbers"),
    (12, "a full table of identities"),
    (13, "odd, long and deep paths"),
    (14, "TCP Fast Open, MPTCP"),
    (15, "other families and types of sockets"),
    (16, "every call that sends, and ways round by other hosts"),
    (17, "other spellings of an address, special ranges"),
    (18, "`AF_UNSPEC`"),
    (19, "sockets of another program, and of a policy before"),
    (20, "io_uring"),
    (21, "the host's Unix sockets"),
    (22, "names as a way out"),
    (23, "another host at an allowed address"),
    (24, "the metadata service, the agent's ports"),
    (25, "listening, and the host's loopback"),
    (27, "read-only and closed files"),
    (28, "islands in a writable tree"),
    (29, "closed places that are not there yet"),
    (30, "files that were open before"),
    (31, "another cgroup"),
    (32, "namespaces, mounts, BPF, foreign calls"),
    (33, "the agent and its programs"),
    (36, "other sandboxes and the host"),
    (38, "a kernel that can less"),
];

/// A cell: how many attacks each layer stopped, and which ones none did.
fn cell(observed: &Observed, row: u8) -> Option<String> {
    let attacks = observed.rows.get(&row)?;
    let mut layers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut through = Vec::new();
    for (attack, told) in attacks {
        for layer in told {
            match layer.as_str() {
                NOT_STOPPED => through.push(attack.as_str()),
                layer => *layers.entry(layer).or_default() += 1,
            }
        }
    }
    let mut counted: Vec<(&str, usize)> = layers.into_iter().collect();
    counted.sort_by_key(|(layer, count)| (std::cmp::Reverse(*count), *layer));
    let mut parts: Vec<String> =
        counted.iter().map(|(layer, count)| format!("{layer} {count}")).collect();
    match through.len() {
        0 => {}
        // A list that long says nothing any more; `--format json` has it.
        count if count > 6 => parts.push(format!("**not stopped** {count}")),
        _ => parts.push(format!("**not stopped**: {}", through.join("; "))),
    }
    Some(parts.join(", "))
}

/// Cells by row and column.
type Cells = BTreeMap<(u8, String), String>;

/// What the document says, and its columns in order.
struct Table {
    columns: Vec<String>,
    cells: Cells,
}

impl Table {
    fn of(seen: &[(String, Observed)]) -> Self {
        let columns = seen.iter().map(|(column, _)| column.clone()).collect();
        let mut cells = Cells::new();
        for (column, observed) in seen {
            for (row, _) in ROWS {
                if let Some(cell) = cell(observed, row) {
                    cells.insert((row, column.clone()), cell);
                }
            }
        }
        Self { columns, cells }
    }

    /// From between the marks of a document.
    fn read(text: &str) -> Self {
        let mut lines = text.lines().filter(|line| line.starts_with('|')).map(|line| {
            let line = line.trim().trim_matches('|');
            line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
        });
        let columns: Vec<String> = lines.next().unwrap_or_default().into_iter().skip(2).collect();
        let mut cells = Cells::new();
        for line in lines {
            let Some(row) = line.first().and_then(|row| row.parse().ok()) else { continue };
            for (column, cell) in columns.iter().zip(line.iter().skip(2)) {
                cells.insert((row, column.clone()), cell.clone());
            }
        }
        Self { columns, cells }
    }

    /// Takes the columns that were seen in place of its own.
    fn updated(mut self, seen: Self) -> Self {
        for column in seen.columns {
            self.cells.retain(|(_, of), _| *of != column);
            if !self.columns.contains(&column) {
                self.columns.push(column);
            }
        }
        self.cells.extend(seen.cells);
        // This machine's first, then the VMs', oldest first.
        let place = |column: &String| Kernel::ALL.iter().position(|it| it.name() == column);
        self.columns.sort_by_key(place);
        self
    }

    fn shown(&self) -> String {
        let mut text = String::new();
        let heads = self.columns.join(" | ");
        let _ = writeln!(text, "| row | attack | {heads} |");
        let _ = writeln!(text, "|---|---{}|", "|---".repeat(self.columns.len()));
        for (row, title) in ROWS {
            let of = |column: &String| self.cells.get(&(row, column.clone())).map_or("", |it| it);
            let cells: Vec<&str> = self.columns.iter().map(of).collect();
            let _ = writeln!(text, "| {row} | {title} | {} |", cells.join(" | "));
        }
        text
    }
}

/// The table of what was seen alone.
pub fn of(seen: &[(String, Observed)]) -> String {
    Table::of(seen).shown()
}

/// What stands before, between and after the marks.
fn split(document: &str) -> Result<(&str, &str, &str)> {
    let (before, rest) = document.split_once(BEGIN).context("the mark of the table is missing")?;
    let (table, after) = rest.split_once(END).context("the mark of the table's end is missing")?;
    Ok((before, table, after))
}

/// The document with what was seen.
pub fn written(document: &str, seen: &[(String, Observed)]) -> Result<String> {
    let (before, table, after) = split(document)?;
    let table = Table::read(table).updated(Table::of(seen)).shown();
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

/// Where the document says something else than what was seen. Kernels that it does not know are no
/// difference: this machine's may be any.
pub fn differences(document: &str, seen: &[(String, Observed)]) -> Result<Vec<String>> {
    let told = Table::read(split(document)?.1);
    if told.columns.is_empty() {
        bail!("the table has no columns; `cargo xtask attacks --write` writes it");
    }
    let mut found = Vec::new();
    for (column, observed) in seen {
        if !told.columns.contains(column) {
            println!("not compared: the table has no column `{column}`");
            continue;
        }
        for (row, title) in ROWS {
            let seen = cell(observed, row).unwrap_or_default();
            let said = told.cells.get(&(row, column.clone())).cloned().unwrap_or_default();
            if seen.is_empty() {
                found.push(format!("row {row} ({title}), {column}: nothing was tried"));
            } else if seen != said {
                found.push(format!("row {row} ({title}), {column}: seen `{seen}`, said `{said}`"));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(layer: &str) -> Vec<(String, Observed)> {
        let line = |row: u8, attack: &str, layer: &str| {
            format!("attack: {{\"row\":{row},\"attack\":\"{attack}\",\"layer\":\"{layer}\"}}\n")
        };
        let lines: String = ROWS
            .into_iter()
            .map(|(row, _)| {
                line(row, "a", layer) + &line(row, "b", layer) + &line(row, "c", "start")
            })
            .collect();
        vec![("6.1".to_owned(), Observed::read(&lines).unwrap())]
    }

    #[test]
    fn a_written_table_agrees_with_what_was_seen_and_with_nothing_else() {
        let empty = format!("before\n{BEGIN}\n{END}\nafter\n");
        assert!(differences(&empty, &seen("BPF LSM")).is_err());
        let text = written(&empty, &seen("BPF LSM")).unwrap();
        assert!(
            text.contains("| 27 | read-only and closed files | BPF LSM 2, start 1 |"),
            "{text}"
        );
        assert!(text.starts_with("before\n") && text.ends_with("\nafter\n"));
        assert_eq!(differences(&text, &seen("BPF LSM")).unwrap(), [""; 0]);
        assert_eq!(differences(&text, &seen("seccomp")).unwrap().len(), ROWS.len());
        let mut other = seen("seccomp");
        other[0].0 = "6.12".to_owned();
        assert_eq!(differences(&text, &other).unwrap(), [""; 0]);
        let both = written(&text, &other).unwrap();
        assert!(both.contains("| BPF LSM 2, start 1 | seccomp 2, start 1 |"), "{both}");
    }

    #[test]
    fn a_row_that_was_not_tried_is_a_difference() {
        let empty = format!("{BEGIN}\n{END}\n");
        let text = written(&empty, &seen("BPF LSM")).unwrap();
        let mut less = seen("BPF LSM");
        less[0].1.rows.remove(&13);
        let found = differences(&text, &less).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("nothing was tried"), "{found:?}");
    }

    #[test]
    fn what_got_through_is_named() {
        let text = of(&seen(NOT_STOPPED));
        assert!(text.contains("| start 1, **not stopped**: a; b |"), "{text}");
    }
}
