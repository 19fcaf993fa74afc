//! What `prepare` says: requested against actual, and refusals that name the remedy.

use std::process::Command;

use super::*;

fn layer<'a>(report: &'a BackstopReport, name: &str) -> &'a Layer {
    report.layers.iter().find(|layer| layer.layer == name).unwrap()
}

#[test]
fn a_missing_path_is_reported_and_with_hard_requirement_refused() {
    let mut request = everyday(&[]);
    request.user = None;
    request.read_only.push("/no/such/path".into());
    let (_, report) = prepare(&request).unwrap();
    assert_eq!(report.skipped_paths.len(), 1);
    assert_eq!(report.skipped_paths[0].path, Path::new("/no/such/path"));
    assert_eq!(layer(&report, "landlock.files").state, LayerState::Partial);

    request.hard_requirement = true;
    let error = prepare(&request).unwrap_err().to_string();
    assert!(error.contains("/no/such/path") && error.contains("best_effort"), "{error}");
}

#[test]
fn a_read_only_island_is_reported_and_with_hard_requirement_refused() {
    let home = open_directory();
    let island = home.path().join("island");
    std::fs::create_dir(&island).unwrap();
    let mut request = everyday(&[home.path()]);
    request.user = None;
    request.read_only.push(island.clone());
    let (_, report) = prepare(&request).unwrap();
    assert_eq!(report.writable_islands, [island]);

    request.hard_requirement = true;
    let error = prepare(&request).unwrap_err().to_string();
    assert!(error.contains("read-only inside read-write"), "{error}");
}

#[test]
fn hard_requirement_holds_where_the_kernel_has_scopes() {
    if not_root() {
        return;
    }
    let request = Request { hard_requirement: true, ..everyday(&[]) };
    let outcome = prepare(&request);
    if landlock::kernel_abi().unwrap() >= landlock::since::SCOPES {
        let (_, report) = outcome.unwrap();
        assert_eq!(layer(&report, "landlock.files").state, LayerState::Full);
    } else {
        assert!(matches!(outcome.unwrap_err(), LaunchError::NotFull { .. }));
    }
}

#[test]
fn the_report_is_plain_json() {
    let request = Request { user: None, ..everyday(&[]) };
    let (_, report) = prepare(&request).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["layers"][0]["layer"], "process");
    assert_eq!(json["layers"][0]["state"], "full");
    for layer in report.incomplete() {
        assert!(!layer.why.is_empty() && !layer.missing().is_empty(), "{layer:?}");
    }
}

#[test]
fn a_step_that_fails_in_the_child_is_named_by_the_parent() {
    if not_root() {
        return;
    }
    let (prepared, _) = prepare(&everyday(&[])).unwrap();
    // Inside a sandbox a second one can neither make a namespace nor change user.
    let outcome = in_child(&|| {
        if prepared.entry.enter().is_err() {
            return 1;
        }
        prepared
            .entry
            .enter()
            .map_or_else(|error| -i64::from(error.raw_os_error().unwrap_or(0)), |()| 0)
    });
    assert_eq!(outcome, refused(libc::EPERM));
    let error = prepared.explain(io::Error::from_raw_os_error(libc::EPERM)).to_string();
    assert!(error.contains("private IPC namespace"), "{error}");
}

#[test]
fn a_command_that_does_not_exist_is_not_blamed_on_a_step() {
    let (prepared, _) = prepare(&Request { user: None, ..everyday(&[]) }).unwrap();
    let error = Command::new("/no/such/program").spawn().unwrap_err();
    assert!(matches!(prepared.explain(error), LaunchError::Exec(_)));
}
