//! A store that was written, killed, filled up and tampered with.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::columns::Columns;
use super::intake::Store;
use super::ledger::{self, HEADS, PUBLIC, TAIL, What};
use super::limits::Limits;
use super::signed::HostKey;
use super::verify::{Verified, verify};
use super::writer::Writer;
use super::{row, segment_name, segments};
use crate::audit::record::{Class, FileObject, Object, Subject, VerdictName};
use crate::audit::trail::Draft;

struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn store(&self) -> PathBuf {
        self.root.path().join("audit")
    }

    fn key(&self) -> PathBuf {
        self.root.path().join("audit.key")
    }

    fn open(&self, limits: Limits) -> (Writer, Vec<&'static str>) {
        let (writer, findings) = Writer::open(&self.store(), &self.key(), limits).unwrap();
        (writer, findings.into_iter().map(|finding| finding.reason).collect())
    }

    fn verified(&self) -> Verified {
        verify(&self.store(), HostKey::read(&self.key()).unwrap().public()).unwrap()
    }
}

pub(crate) fn denied(path: &str) -> Draft {
    Draft {
        // An hour ago: old enough to be removed where a test says so.
        time: Some(SystemTime::now() - Duration::from_secs(3_600)),
        class: Class::File,
        action: "open",
        verdict: VerdictName::Deny,
        reason: "unknown-file",
        let_through: false,
        rule: None,
        subject: Some(Subject {
            pid: 7,
            uid: 1000,
            exe: Some("/usr/bin/cat".to_owned()),
            exe_id: "8:1:99".to_owned(),
            script: None,
        }),
        object: Object::File(FileObject {
            path: path.to_owned(),
            id: "8:1:5".to_owned(),
            access: vec!["read".to_owned()],
            other_path: None,
            errno: None,
        }),
    }
}

fn append(writer: &mut Writer, rows: usize) {
    let mut columns = Columns::default();
    for row in 0..rows {
        row::put(&mut columns, "agent-1", Some(3), &denied(&format!("/etc/{row}")));
    }
    writer.append(&columns.take().into_batch().unwrap().unwrap()).unwrap();
}

fn small(segment: &str, quota: &str) -> Limits {
    let text = format!("{{ segment: {segment}, quota: {quota} }}");
    serde_saphyr::from_str(&text).unwrap()
}

/// Two closed segments and an open one, of a few batches each.
fn written() -> Place {
    let place = Place::new();
    let (mut writer, findings) = place.open(Limits::default());
    assert_eq!(findings, [""; 0]);
    for _ in 0..2 {
        (1..5).for_each(|rows| append(&mut writer, rows));
        writer.close().unwrap();
    }
    (1..4).for_each(|rows| append(&mut writer, rows));
    place
}

#[test]
fn a_store_is_whole_after_its_writer_was_killed_between_and_within_batches() {
    let place = written();
    let found = place.verified();
    assert_eq!(found.problems, []);
    assert_eq!((found.segments, found.batches, found.events, found.unsigned), (3, 11, 26, 0));
    // It is written in place, which only a whole sector may be.
    assert_eq!(fs::metadata(place.store().join(TAIL)).unwrap().len(), 512);
    // Killed within a batch, and with one that the tail does not cover.
    let open = place.store().join(segment_name(3));
    let mut bytes = fs::read(&open).unwrap();
    let last = super::scan::scan(&open, |_, _| {}).unwrap().batches[2].at as usize;
    bytes.extend_from_within(last..last + 200);
    fs::write(&open, &bytes).unwrap();
    assert_eq!(place.verified().problems, []);
    let (mut writer, findings) = place.open(Limits::default());
    assert_eq!((findings.as_slice(), writer.next_event()), (["torn"].as_slice(), 26));
    append(&mut writer, 2);
    drop(writer);
    let found = place.verified();
    assert_eq!((found.problems, found.events, found.segments), (vec![], 28, 4));
    let key = HostKey::read(&place.key()).unwrap().public();
    let lines = ledger::lines(&place.store(), key).unwrap().lines;
    let what: Vec<What> = lines.iter().map(|line| line.what).collect();
    assert_eq!(what, [What::Closed, What::Closed, What::Recovered]);
    assert!(lines[2].torn > 0);
}

#[test]
fn an_open_segment_without_its_last_batches_is_told_by_verify_and_by_the_next_writer() {
    let place = written();
    let open = place.store().join(segment_name(3));
    let all = super::scan::scan(&open, |_, _| {}).unwrap();
    let file = fs::File::options().write(true).open(&open).unwrap();
    file.set_len(all.batches[1].at).unwrap();
    let problems = place.verified().problems;
    assert!(problems[0].what.contains("1 batches are there of 3"), "{problems:?}");
    assert_eq!((problems.len(), problems[0].batch), (1, Some(1)));
    let (_, findings) = place.open(Limits::default());
    assert_eq!(findings, ["cut"]);
    fs::remove_file(&open).unwrap();
    let problems = place.verified().problems;
    assert!(problems[0].what.contains("missing"), "{problems:?}");
}

#[test]
fn the_oldest_segments_go_by_quota_and_by_age_and_each_by_a_signed_line() {
    let place = Place::new();
    let (mut writer, _) = place.open(small("64K", "128K"));
    for _ in 0..40 {
        append(&mut writer, 2_000);
    }
    writer.close().unwrap();
    let found = place.verified();
    assert_eq!(found.problems, []);
    assert!(found.removed > 3 && found.bytes <= 128 << 10, "{found:?}");
    drop(writer);
    let (mut writer, _) = place.open(serde_saphyr::from_str("{ keep: 1s }").unwrap());
    writer.look().unwrap();
    assert_eq!(segments(&place.store()).unwrap(), [0; 0]);
    let found = place.verified();
    assert_eq!((found.problems, found.segments), (vec![], 0));
    append(&mut writer, 1);
    assert_eq!(place.verified().problems, []);
}

#[test]
fn what_became_of_a_segment_is_said_once_where_the_tail_finds_no_room() {
    let place = Place::new();
    let (mut writer, _) = place.open(Limits::default());
    append(&mut writer, 2);
    // It can be written nowhere, as on a disk that the line before has filled.
    let tail = place.store().join(TAIL);
    fs::remove_file(&tail).unwrap();
    fs::create_dir(&tail).unwrap();
    writer.close().unwrap();
    append(&mut writer, 3);
    writer.close().unwrap();
    fs::remove_dir(&tail).unwrap();
    append(&mut writer, 4);
    drop(writer);
    let key = HostKey::read(&place.key()).unwrap().public();
    let lines = ledger::lines(&place.store(), key).unwrap().lines;
    let said: Vec<(What, u64)> = lines.iter().map(|line| (line.what, line.events)).collect();
    assert_eq!(said, [(What::Closed, 2), (What::Closed, 3)]);
    let found = place.verified();
    assert_eq!((found.problems, found.events, found.segments), (vec![], 9, 3));
}

#[test]
fn records_are_on_the_disk_soon_and_all_of_them_when_the_store_is_closed() {
    let place = Place::new();
    let store = Store::start(place.store(), place.key(), "agent", Limits::default(), None).unwrap();
    let intake = store.intake();
    (0..1_000).for_each(|row| intake.record("one-1", None, &denied(&format!("/x/{row}")), None));
    drop(store);
    let found = place.verified();
    assert_eq!((found.problems, found.events), (vec![], 1_000));
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(place.store()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

/// Every file that verify goes by.
fn files(store: &Path) -> Vec<PathBuf> {
    let mut names: Vec<String> = (1..=3).map(segment_name).collect();
    names.extend([HEADS.to_owned(), TAIL.to_owned()]);
    names.into_iter().map(|name| store.join(name)).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_flipped_bit_and_every_cut_is_found(
        file in 0_usize..5,
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
        cuts in any::<bool>(),
    ) {
        thread_local! { static WRITTEN: Place = written(); }
        WRITTEN.with(|place| {
            let path = files(&place.store())[file].clone();
            let before = fs::read(&path).unwrap();
            let at = at.index(before.len());
            let mut after = before.clone();
            if cuts { after.truncate(at) } else { after[at] ^= 1 << bit }
            fs::write(&path, &after).unwrap();
            let problems = place.verified().problems;
            fs::write(&path, &before).unwrap();
            assert_ne!(problems, [], "{} {at} {bit} {cuts}", path.display());
            assert_eq!(place.verified().problems, []);
        });
    }

    #[test]
    fn every_batch_that_is_taken_out_moved_or_there_twice_is_named(
        segment in 1_u64..4,
        one in any::<prop::sample::Index>(),
        other in any::<prop::sample::Index>(),
        what in 0_u8..3,
    ) {
        thread_local! { static WRITTEN: Place = written(); }
        WRITTEN.with(|place| {
            let path = place.store().join(segment_name(segment));
            let before = fs::read(&path).unwrap();
            let all = super::scan::scan(&path, |_, _| {}).unwrap();
            let batch = |at: usize| {
                let seen = &all.batches[at];
                before[seen.at as usize..(seen.at + seen.bytes) as usize].to_vec()
            };
            let mut batches: Vec<Vec<u8>> = (0..all.batches.len()).map(batch).collect();
            let (one, other) = (one.index(batches.len()), other.index(batches.len()));
            prop_assume!(what != 1 || one != other);
            match what {
                0 => drop(batches.remove(one)),
                1 => batches.swap(one, other),
                _ => batches.insert(other, batches[one].clone()),
            }
            let mut after = before[..all.batches[0].at as usize].to_vec();
            after.extend(batches.concat());
            after.extend(&before[all.whole as usize..]);
            fs::write(&path, &after).unwrap();
            let problems = place.verified().problems;
            fs::write(&path, &before).unwrap();
            assert!(problems.iter().all(|problem| problem.file == segment_name(segment)));
            assert!(problems.iter().any(|problem| problem.batch.is_some()), "{problems:?}");
            Ok(())
        })?;
    }
}

#[test]
fn no_file_can_be_missing_and_none_taken_from_another_host() {
    let place = written();
    for path in files(&place.store()) {
        let before = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_ne!(place.verified().problems, [], "{}", path.display());
        fs::write(&path, before).unwrap();
    }
    let other = written();
    assert_eq!(other.verified().problems, []);
    let theirs = HostKey::read(&other.key()).unwrap().public();
    assert_ne!(verify(&place.store(), theirs).unwrap().problems, []);
    // A whole store of another key, put in place of this one's.
    let moved = place.root.path().join("moved");
    copy(&other.store(), &moved);
    fs::remove_dir_all(place.store()).unwrap();
    fs::rename(moved, place.store()).unwrap();
    assert_ne!(place.verified().problems, []);
    let (_, findings) = place.open(Limits::default());
    assert!(findings.contains(&"key") && findings.contains(&"heads"), "{findings:?}");
    assert!(place.store().join(PUBLIC).exists());
}
