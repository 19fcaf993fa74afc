//! The trail: every decision is in it or is counted as lost, whatever load and mode.

use std::net::IpAddr;

use clawbox_tests::clawbox::{Clawbox, Finished};
use clawbox_tests::network::{ELSEWHERE, SITE};
use serde_json::Value;

use crate::scene::{Account, ECHO, Scene};

#[test]
fn a_trail_is_whole_lines_numbered_from_start_to_stop() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let policy = scene.allowing_attack("{ host: api.test, port: 7 }");
    let trail = scene.world.private().join("trail");
    // A dot is fine in a name, though not in one of bpffs.
    let clawbox = Clawbox::new(&scene.world, &policy).without_trail().name("a.name");
    let attack = scene.attack();
    let words = [&attack, "tcp=api.test:7", "connect=10.1.2.3:7", "bind=0.0.0.0:9"];
    let run = clawbox.argument("--audit").argument(&trail).run(&words);
    assert_eq!(run.status, 0, "{}", run.stderr);
    assert_eq!(std::fs::metadata(&trail).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&trail).unwrap();
    let records: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let times: Vec<&str> = records.iter().map(|record| record["time"].as_str().unwrap()).collect();
    assert!(times.iter().all(|time| time.len() == 27 && time.ends_with('Z')), "{times:?}");
    for (record, number) in records.iter().zip(1..) {
        assert_eq!((&record["seq"], &record["sandbox"]), (&number.into(), &"a.name".into()));
    }
    let words: Vec<(&str, &str)> = records
        .iter()
        .map(|record| (record["action"].as_str().unwrap(), record["reason"].as_str().unwrap()))
        .collect();
    assert_eq!((words[0], words[1]), (("start", "start"), ("exec", "exec")), "{words:?}");
    assert_eq!(words.last(), Some(&("stop", "stop")));
    for wanted in [
        ("connect", "resolver"),
        ("question", "rule"),
        ("connect", "rule"),
        ("connect", "unknown-endpoint"),
        ("bind", "listen-not-allowed"),
    ] {
        assert!(words.contains(&wanted), "{wanted:?}: {words:?}");
    }
    // The command's own number is the same from its start on.
    let pids: Vec<&Value> = records.iter().map(|record| &record["subject"]["pid"]).collect();
    assert!(pids.iter().all(|pid| pid.is_null() || *pid == pids[1]), "{pids:?}");
}

#[test]
fn the_trail_can_go_to_standard_output() {
    let scene = Scene::new();
    let run = Clawbox::new(&scene.world, &scene.policy(""))
        .without_trail()
        .argument("--audit")
        .argument("-")
        .run(&["/bin/echo", "said"]);
    let (said, records): (Vec<&str>, Vec<&str>) =
        run.stdout.lines().partition(|line| *line == "said");
    assert_eq!((said.len(), records.len()), (1, 3), "{}", run.stdout);
    assert!(records.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()));
}

#[test]
fn audit_mode_lets_through_and_says_what_would_have_been_denied() {
    let scene = Scene::new();
    scene.names.host("evil.test", &[ELSEWHERE.into()]);
    let elsewhere = format!("tcp={ELSEWHERE}:7");
    let send = format!("send={ELSEWHERE}:7");
    let steps = [&elsewhere, &send, "tcp=evil.test:7", "bind=127.0.0.1:8080", "tcp=api.test:7"];
    let policy = scene.allowing_attack("{ host: api.test, port: 7 }");
    let attack = scene.attack();
    let words: Vec<&str> = [attack.as_str()].into_iter().chain(steps).collect();
    let by_argument = Clawbox::new(&scene.world, &policy).argument("--mode").argument("audit");
    let by_policy = Clawbox::new(&scene.world, &format!("{policy}mode: audit\n"));
    for clawbox in [by_argument, by_policy] {
        let account = Account::of(clawbox.run(&words));
        account.expect(&steps.map(|step| (step, "ok")));
        let denials = account.run.denials();
        // A question without an answer had nothing to let through.
        let had_something =
            |record: &&&Value| record["object"]["addresses"] != serde_json::json!([]);
        assert!(
            denials.iter().filter(had_something).all(|record| record["let_through"] == true),
            "{denials:?}"
        );
        assert_eq!(account.run.records("start")[0]["object"]["mode"], "audit");
        let to = (IpAddr::from(ELSEWHERE), ECHO);
        account.record("connect", "unknown-endpoint", &attack, to);
        account.record("send", "unknown-endpoint", &attack, to);
        assert_eq!(
            account.record("connect", "rule", &attack, (SITE.into(), ECHO)).get("let_through"),
            None
        );
        let questions = account.run.records("question");
        // Its addresses of both families are asked for, in either order, and it has one.
        let mut answered = questions.iter().filter(had_something);
        let evil = answered.find(|record| record["object"]["name"] == "evil.test").unwrap();
        assert_eq!((&evil["reason"], &evil["let_through"]), (&"unknown-name".into(), &true.into()));
    }
    // The same in force.
    let account = scene.attack_with(&policy, &[&elsewhere, "bind=127.0.0.1:8080"]);
    account.expect(&[(&elsewhere, "EPERM"), ("bind=127.0.0.1:8080", "EPERM")]);
    assert!(account.run.denials().iter().all(|record| record.get("let_through").is_none()));
}

#[test]
fn what_is_allowed_is_counted_exactly_or_told_one_by_one() {
    const OPENS: u64 = 137;
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let directory = scene.world.work().join("counted");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("file"), "text").unwrap();
    let path = directory.display().to_string();
    let policy = scene.policy("").replace("[/dev/null]", &format!("[/dev/null, {path}]"));
    let code = format!(
        "import os\nfor i in range({OPENS}): os.close(os.open('{path}/file', os.O_RDONLY))\n\
         os.close(os.open('{path}/new', os.O_WRONLY | os.O_CREAT))\nos.unlink('{path}/new')"
    );
    let run = |level: &str| {
        Clawbox::new(&scene.world, &policy)
            .user(None)
            .with_lsm()
            .argument(format!("--audit-level={level}"))
            .run(&["/usr/bin/python3", "-c", &code])
    };
    let summary = run("summary");
    assert_eq!(summary.status, 0, "{}", summary.stderr);
    let counted: Vec<_> = summary
        .records("summary")
        .into_iter()
        .filter(|record| record["object"]["directory"] == path.as_str())
        .map(|record| &record["object"])
        .collect();
    // More than one where the time to sum up came in between.
    assert!((1..4).contains(&counted.len()), "{counted:#?}");
    for sum in &counted {
        assert!(sum["program"].as_str().unwrap().contains("python3"), "{counted:#?}");
        assert!(sum["first"].as_str().unwrap() <= sum["last"].as_str().unwrap());
    }
    let all = |what: &str| counted.iter().map(|sum| sum[what].as_u64().unwrap()).sum::<u64>();
    // Made, opened to be written, removed.
    assert_eq!([all("reads"), all("writes")], [OPENS, 3], "{counted:#?}");
    let all = run("all");
    let opened = |run: &Finished, action: &str| {
        let of_file = |record: &&serde_json::Value| {
            record["verdict"] == "allow"
                && record["object"]["path"].as_str().is_some_and(|at| at.starts_with(&path))
        };
        run.records(action).into_iter().filter(of_file).count() as u64
    };
    assert_eq!((opened(&all, "open"), opened(&all, "unlink")), (OPENS + 1, 1));
    assert!(all.records("summary").is_empty());
}

#[test]
fn connects_that_are_alike_are_told_once_and_counted_or_each_by_itself_or_not_at_all() {
    const CONNECTS: u64 = 300;
    let scene = Scene::new();
    let policy =
        scene.allowing_attack(&format!("{{ host: {SITE}, port: {ECHO}, transport: udp }}"));
    let run = |level: &str| {
        let clawbox = Clawbox::new(&scene.world, &policy);
        let flood = format!("flood={CONNECTS},{SITE}:{ECHO}");
        let run = clawbox.argument(format!("--audit-level={level}")).run(&[
            &scene.attack(),
            &flood,
            &format!("connect={ELSEWHERE}:7"),
        ]);
        assert_eq!(run.status, 0, "{}", run.stderr);
        let of = |verdict: &str| -> Vec<u64> {
            let all = run.records("connect").into_iter();
            let all = all.filter(|record| record["verdict"] == verdict);
            all.map(|record| record["object"]["times"].as_u64().unwrap_or(1)).collect()
        };
        (of("allow"), of("deny"))
    };
    let (summary, denied) = run("summary");
    // More than two where ten seconds are over in between.
    assert!((2..7).contains(&summary.len()), "{summary:?}");
    assert_eq!((summary.iter().sum(), denied.len()), (CONNECTS, 1), "{summary:?}");
    let (all, denied) = run("all");
    assert_eq!((all.len() as u64, denied.len()), (CONNECTS, 1));
    let (none, denied) = run("denials");
    assert_eq!((none, denied.len()), (Vec::new(), 1));
}
