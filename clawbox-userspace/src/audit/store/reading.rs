//! What was stored comes back: filtered, counted, followed and in the formats of others.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::columns::Columns;
use super::counts::Counts;
use super::event::object;
use super::filter::{Field, Filter, Pattern};
use super::history::History;
use super::limits::Limits;
use super::read::{Cursor, Everything, Reader};
use super::row;
use super::schema::{Number, Text};
use super::tests::denied;
use super::writer::Writer;
use super::{export, ocsf};
use crate::audit::record::{Class, Endpoint, Gap, Object, Program, Rule, VerdictName};
use crate::audit::trail::{Draft, gap_of};

struct Written {
    _root: tempfile::TempDir,
    directory: PathBuf,
    writer: Writer,
}

fn begun() -> Written {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("audit");
    let key = root.path().join("audit.key");
    let (writer, _) = Writer::open(&directory, &key, Limits::default()).unwrap();
    Written { _root: root, directory, writer }
}

impl Written {
    fn batch(&mut self, drafts: &[(&str, Draft)]) {
        let mut columns = Columns::default();
        drafts.iter().for_each(|(sandbox, draft)| row::put(&mut columns, sandbox, Some(2), draft));
        self.writer.append(&columns.take().into_batch().unwrap().unwrap()).unwrap();
    }

    fn reader(&self) -> Reader {
        Reader::at(&self.directory, Cursor::default())
    }

    fn found(&self, mut filter: Filter) -> Vec<Value> {
        let (mut reader, mut all) = (self.reader(), Vec::new());
        while let Some(batch) = reader.next(&mut filter).unwrap() {
            all.extend(filter.rows(&batch).map(|row| Value::Object(object(row))));
        }
        all
    }
}

fn wanted(column: Text, pattern: Pattern) -> Filter {
    let mut filter = Filter::default();
    filter.text(&[column], pattern);
    filter
}

fn connected(host: &str, seconds: u64) -> Draft {
    Draft {
        time: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        class: Class::Network,
        action: "connect",
        verdict: VerdictName::Allow,
        reason: "rule",
        rule: Some(Rule {
            policy: "api".to_owned(),
            endpoint: 1,
            host: "*.test".to_owned(),
            binary: None,
        }),
        object: Object::Endpoint(Endpoint {
            host: Some(host.to_owned()),
            ip: "203.0.113.9".parse().unwrap(),
            asked: None,
            port: 443,
            transport: "tcp".to_owned(),
            named: None,
            hidden: false,
            times: None,
        }),
        ..denied("")
    }
}

fn executed(pid: u32, parent: u32, path: &str, seconds: u64) -> Draft {
    let object = Object::Program(Program {
        path: path.to_owned(),
        parent,
        args: vec![path.to_owned(), "-x".to_owned()],
    });
    let mut draft =
        Draft { class: Class::Process, action: "exec", object, ..connected("", seconds) };
    draft.rule = None;
    if let Some(subject) = &mut draft.subject {
        subject.pid = pid;
    }
    draft
}

#[test]
fn a_row_has_all_that_its_record_had_and_nothing_that_it_had_not() {
    let mut store = begun();
    store.batch(&[("a-1", denied("/etc/shadow"))]);
    let gap = gap_of(Gap { count: 41, kind: "connect".to_owned(), verdict: None });
    store.batch(&[("b-2", connected("x.test", 1)), ("b-2", gap)]);
    let all = store.found(Filter::default());
    let keys = |row: &Value| row.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        keys(&all[0]),
        "id time sandbox class action verdict reason exe exe_id path path_id access pid uid policy \
         count"
    );
    assert_eq!((&all[0]["path"], &all[0]["id"]), (&"/etc/shadow".into(), &0.into()));
    assert_eq!(all[1]["time"], "1970-01-01T00:00:01.000000Z");
    assert_eq!((&all[1]["rule_endpoint"], &all[1]["port"]), (&1.into(), &443.into()));
    assert_eq!((&all[2]["count"], &all[2]["detail"]["kind"]), (&41.into(), &"connect".into()));
    assert_eq!(all[2].get("pid"), None);
}

#[test]
fn filters_give_the_same_rows_as_looking_at_each() {
    let mut store = begun();
    for round in 0..6 {
        let rows = (0..50).map(|row| match (row + round) % 3 {
            0 => ("a-1", denied(&format!("/etc/{row}.conf"))),
            1 => ("a-1", connected(&format!("h{row}.test"), row)),
            _ => ("other-2", connected("x.test", 1_000 + row)),
        });
        store.batch(&rows.collect::<Vec<_>>());
        if round % 2 == 1 {
            store.writer.close().unwrap();
        }
    }
    let all = store.found(Filter::default());
    assert_eq!(all.len(), 300);
    let since = |seconds: i64| {
        let mut filter = Filter::default();
        filter.between(Some(seconds * 1_000_000), Some((seconds + 10) * 1_000_000));
        filter
    };
    let deny = wanted(Text::Verdict, Pattern::Is("deny".to_owned()));
    let sandbox = wanted(Text::Sandbox, Pattern::Sandbox("other".to_owned()));
    let mut both = wanted(Text::Path, Pattern::of("/etc/1*").unwrap());
    both.number(Number::Pid, 7);
    type Naive = fn(&Value) -> bool;
    let cases: [(Filter, Naive); 5] = [
        (deny, |row| row["verdict"] == "deny"),
        (sandbox, |row| row["sandbox"] == "other-2"),
        (both, |row| row["path"].as_str().is_some_and(|path| path.starts_with("/etc/1"))),
        (since(1_010), |row| {
            let time = row["time"].as_str().unwrap();
            ("1970-01-01T00:16:50".."1970-01-01T00:17:00").contains(&time)
        }),
        (wanted(Text::Host, Pattern::Is("nowhere".to_owned())), |_| false),
    ];
    for (at, (filter, naive)) in cases.into_iter().enumerate() {
        let expected: Vec<Value> = all.iter().filter(|row| naive(row)).cloned().collect();
        assert_eq!(store.found(filter), expected, "{at}");
        assert_eq!(expected.is_empty(), at == 4);
    }
    let mut filter = Filter::default();
    let by = ["sandbox", "verdict"].map(|name| name.parse::<Field>().unwrap());
    filter.show(by.iter().map(|field| field.at()).collect());
    let (mut counts, mut reader) = (Counts::by(&by), store.reader());
    while let Some(batch) = reader.next(&mut filter).unwrap() {
        counts.add(&batch, &filter);
    }
    let counted = counts.sorted();
    assert_eq!(counted.len(), 3);
    assert!(counted.iter().all(|row| row["rows"] == 100 && row["events"] == 100), "{counted:?}");
}

#[test]
fn a_reader_that_follows_gets_each_batch_once_over_rotations_and_half_written_ones() {
    let mut store = begun();
    let (mut reader, mut ids) = (store.reader(), Vec::new());
    let mut read = |reader: &mut Reader| {
        while let Some(batch) = reader.next(&mut Everything).unwrap() {
            ids.extend(batch.rows().map(|row| row.id()));
        }
        ids.len()
    };
    assert_eq!(read(&mut reader), 0);
    store.batch(&[("a-1", denied("/1")), ("a-1", denied("/2"))]);
    assert_eq!(read(&mut reader), 2);
    store.writer.close().unwrap();
    assert_eq!(read(&mut reader), 2);
    store.batch(&[("a-1", denied("/3"))]);
    assert_eq!(read(&mut reader), 3);
    store.batch(&[("a-1", denied("/4"))]);
    // As long as the last bytes are not there, the batch is not.
    let path = store.directory.join(super::segment_name(2));
    let whole = std::fs::read(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for bytes in [whole.len() - 1, whole.len() - 900, whole.len() - 2_000] {
        file.set_len(bytes as u64).unwrap();
        assert_eq!(read(&mut reader), 3);
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(read(&mut reader), 4);
    // A later one goes on where this one is.
    let mut next = Reader::at(&store.directory, reader.cursor());
    store.batch(&[("a-1", denied("/5"))]);
    assert_eq!(read(&mut next), 5);
    assert_eq!(ids, [0, 1, 2, 3, 4]);
}

#[test]
fn a_process_is_followed_to_the_command_and_not_to_an_earlier_one_of_its_number() {
    let mut store = begun();
    store.batch(&[
        ("a-1", executed(10, 1, "/bin/agent", 1)),
        ("a-1", executed(20, 10, "/bin/old", 2)),
        ("a-1", executed(20, 10, "/bin/sh", 3)),
        ("a-1", executed(30, 20, "/usr/bin/curl", 4)),
        ("a-1", executed(20, 99, "/bin/later", 5)),
    ]);
    let (mut history, mut reader) = (History::default(), store.reader());
    while let Some(batch) = reader.next(&mut Everything).unwrap() {
        batch.rows().for_each(|row| history.add(row));
    }
    let paths = |pid, seconds: i64| -> Vec<&str> {
        history
            .chain(pid, seconds * 1_000_000)
            .iter()
            .map(|started| started.path.as_str())
            .collect()
    };
    assert_eq!(paths(30, 9), ["/usr/bin/curl", "/bin/sh", "/bin/agent"]);
    assert_eq!(paths(20, 2), ["/bin/old", "/bin/agent"]);
    assert_eq!(paths(30, 3), [""; 0]);
    assert_eq!(history.chain(10, 9_000_000)[0].args.as_ref().unwrap()[1], "-x");
}

#[test]
fn rows_are_told_in_the_formats_of_others() {
    let mut store = begun();
    store.batch(&[("a-1", denied("/etc/\"x\"")), ("a-1", connected("x.test", 1))]);
    let (mut filter, mut reader) = (Filter::default(), store.reader());
    let batch = reader.next(&mut filter).unwrap().unwrap();
    let rows: Vec<_> = batch.rows().collect();
    let headings: Vec<_> = export::headings().collect();
    let fields: Vec<String> = export::fields(rows[0]).collect();
    assert_eq!(headings.len(), fields.len());
    let at = headings.iter().position(|heading| *heading == "path").unwrap();
    assert_eq!(fields[at], "/etc/\"x\"");
    let told = ocsf::event(rows[0], "host");
    assert_eq!((&told["class_uid"], &told["type_uid"]), (&1001.into(), &100_102.into()));
    assert_eq!((&told["action_id"], &told["disposition_id"]), (&2.into(), &2.into()));
    assert_eq!(ocsf::event(rows[1], "host")["dst_endpoint"]["hostname"], "x.test");
    let mut parquet = Vec::new();
    let mut out = export::Parquet::new(&mut parquet).unwrap();
    out.add(&batch, &wanted_deny(&batch)).unwrap();
    out.end().unwrap();
    assert_eq!((&parquet[..4], &parquet[parquet.len() - 4..]), (&b"PAR1"[..], &b"PAR1"[..]));
}

fn wanted_deny(batch: &super::read::Loaded) -> Filter {
    use super::read::Wanted;
    let mut filter = wanted(Text::Verdict, Pattern::Is("deny".to_owned()));
    assert!(filter.may_have(&batch.label) && filter.may_have_of(&batch.pool));
    filter
}

#[test]
fn a_flood_is_stored_by_what_is_alike_in_little_room_and_read_in_the_order_of_time() {
    const ROWS: i64 = 65_536;
    const KINDS: i64 = 257;
    // First each once, then in an order that is not theirs.
    let kind = |micros: i64| if micros < KINDS { micros } else { micros * 7_919 % KINDS };
    let mut store = begun();
    let (mut columns, mut likes) = (Columns::default(), Vec::new());
    for micros in 0..ROWS {
        if micros < KINDS {
            row::put_at(&mut columns, micros, "a-1", None, &denied(&format!("/{micros}")));
            likes.push(columns.last().unwrap());
        } else {
            assert!(columns.again(likes[usize::try_from(kind(micros)).unwrap()], micros));
        }
    }
    store.writer.append(&columns.take().into_batch().unwrap().unwrap()).unwrap();
    let bytes = std::fs::metadata(store.directory.join(super::segment_name(1))).unwrap().len();
    assert!(bytes < 6 * ROWS as u64, "{bytes}");
    let (mut filter, mut reader) = (Filter::default(), store.reader());
    let batch = reader.next(&mut filter).unwrap().unwrap();
    assert!(!batch.is_in_order());
    let times: Vec<i64> = filter.rows(&batch).map(|row| row.micros()).collect();
    assert!(times.iter().copied().eq(0..ROWS));
    let mut ids: Vec<u64> = filter.rows(&batch).map(|row| row.id()).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..ROWS as u64));
    // Each time is with what was done then.
    for row in filter.rows(&batch) {
        assert_eq!(row.text(Text::Path), Some(format!("/{}", kind(row.micros())).as_str()));
    }
}
