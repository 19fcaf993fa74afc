//! Rows as events of the Open Cybersecurity Schema Framework, 1.5: file, process, network and DNS activity,
//! the life of a sandbox as that of an application, and what the agent has found as a finding.

use serde_json::{Map, Value, json};

use super::event::object;
use super::read::Row;
use super::schema::{Number, Text};

/// The version of the schema.
pub const VERSION: &str = "1.5.0";

/// Something else than the schema has a number for.
const OTHER: u32 = 99;

/// A class of the schema: its number, and that of its category is the thousands.
#[derive(Clone, Copy)]
struct Class(u32);

const FILE: Class = Class(1001);
const PROCESS: Class = Class(1007);
const FINDING: Class = Class(2004);
const NETWORK: Class = Class(4001);
const DNS: Class = Class(4003);
const LIFE: Class = Class(6002);

/// The event of a row; the host's name is for its device.
#[must_use]
pub fn event(row: Row<'_>, host: &str) -> Value {
    let text = |column| row.text(column).unwrap_or_default();
    let (class, activity) = match text(Text::Class) {
        "network" => (NETWORK, network_activity(text(Text::Action))),
        "dns" => (DNS, 1),
        "process" => (PROCESS, 1),
        "file" => (FILE, file_activity(text(Text::Action), text(Text::Access))),
        "privilege" => (PROCESS, OTHER),
        "sandbox" => (LIFE, life_activity(text(Text::Action))),
        _ => (FINDING, 1),
    };
    let mut event = base(row, class, activity);
    match class.0 {
        4001 | 4003 => network(row, &mut event, class.0 == DNS.0),
        1001 => {
            event.insert("file".to_owned(), file(text(Text::Path), row.text(Text::PathId)));
        }
        1007 => {
            event.insert("process".to_owned(), process(row, true));
        }
        2004 => {
            let title = format!("{} {}", text(Text::Action), text(Text::Reason));
            let uid = row.id().to_string();
            event.insert("finding_info".to_owned(), json!({ "uid": uid, "title": title }));
        }
        _ => {
            let app = json!({ "name": text(Text::Sandbox), "vendor_name": "clawbox" });
            event.insert("app".to_owned(), app);
        }
    }
    if class.0 != LIFE.0 {
        let device = json!({ "hostname": host, "type_id": 1 });
        event.insert("device".to_owned(), device);
    }
    if class.0 < 2000 || class.0 == 4001 || class.0 == 4003 {
        event.insert("actor".to_owned(), json!({ "process": process(row, false) }));
    }
    Value::Object(event)
}

fn base(row: Row<'_>, class: Class, activity: u32) -> Map<String, Value> {
    let text = |column| row.text(column).unwrap_or_default();
    let (action, disposition) = match (text(Text::Verdict), row.let_through()) {
        ("allow", _) => (1, 1),
        // Logged: what would have been refused.
        ("deny", true) => (3, 17),
        ("deny", false) => (2, 2),
        _ => (OTHER, OTHER),
    };
    let severity = match (text(Text::Verdict), text(Text::Class)) {
        ("deny", _) => 3,
        (_, "agent" | "gap") => 4,
        _ => 1,
    };
    let profiles = if class.0 == LIFE.0 {
        json!(["security_control"])
    } else {
        json!(["host", "security_control"])
    };
    let product = json!({
        "name": "clawbox", "vendor_name": "clawbox", "version": env!("CARGO_PKG_VERSION"),
    });
    let metadata = json!({
        "version": VERSION, "product": product, "profiles": profiles,
        "uid": row.id().to_string(), "sequence": row.id(),
        "labels": [format!("sandbox:{}", text(Text::Sandbox))],
    });
    let mut event = Map::new();
    let mut put = |key: &str, value: Value| drop(event.insert(key.to_owned(), value));
    put("class_uid", class.0.into());
    put("category_uid", (class.0 / 1000).into());
    put("activity_id", activity.into());
    put("activity_name", text(Text::Action).into());
    put("type_uid", (class.0 * 100 + activity).into());
    put("time", (row.micros() / 1000).into());
    put("severity_id", severity.into());
    put("action_id", action.into());
    put("disposition_id", disposition.into());
    put("status_detail", text(Text::Reason).into());
    put("count", row.count().into());
    put("metadata", metadata);
    if let Some(rule) = row.text(Text::Rule) {
        put("firewall_rule", json!({ "name": rule, "condition": text(Text::RuleHost) }));
    }
    // All that the store has: nothing of a row is lost on the way.
    put("unmapped", Value::Object(object(row)));
    event
}

fn network_activity(action: &str) -> u32 {
    match action {
        "connect" | "verify" | "approve" => 1,
        "reset" => 3,
        "refuse" => 5,
        "send" | "send-connected" | "receive" => 6,
        "bind" => 7,
        _ => OTHER,
    }
}

fn file_activity(action: &str, access: &str) -> u32 {
    match action {
        "create" | "mkdir" | "mknod" | "symlink" | "link" => 1,
        "unlink" | "rmdir" => 4,
        "rename" => 5,
        "open" | "allowed" if !access.contains("write") => 2,
        "open" | "allowed" | "truncate" => 3,
        _ => OTHER,
    }
}

fn life_activity(action: &str) -> u32 {
    match action {
        "start" | "attach" | "exec" => 3,
        "stop" => 4,
        _ => OTHER,
    }
}

fn file(path: &str, uid: Option<&str>) -> Value {
    let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(path);
    let name = if name.is_empty() { "?" } else { name };
    let mut file = json!({ "name": name, "type_id": 0 });
    if !path.is_empty() {
        file["path"] = path.into();
    }
    if let Some(uid) = uid {
        file["uid"] = uid.into();
    }
    file
}

/// The process that acted, or the one that was started.
fn process(row: Row<'_>, is_object: bool) -> Value {
    let mut process = json!({ "pid": row.number(Number::Pid).unwrap_or(0) });
    let is_start = is_object && row.text(Text::Class) == Some("process");
    let path = if is_start { row.text(Text::Path) } else { row.text(Text::Exe) };
    if let Some(path) = path {
        process["name"] = path.rsplit('/').next().unwrap_or(path).into();
        process["file"] = file(path, row.text(Text::ExeId).filter(|_| !is_start));
    }
    if let (true, Some(args)) = (is_start, row.text(Text::Args)) {
        let words: Vec<String> = serde_json::from_str(args).unwrap_or_default();
        process["cmd_line"] = words.join(" ").into();
    }
    if let (true, Some(parent)) = (is_start, row.number(Number::Parent)) {
        process["parent_process"] = json!({ "pid": parent });
    }
    if let Some(uid) = row.number(Number::Uid) {
        process["user"] = json!({ "uid": uid.to_string() });
    }
    process
}

fn network(row: Row<'_>, event: &mut Map<String, Value>, is_question: bool) {
    let text = |column| row.text(column).unwrap_or_default();
    let mut endpoint = Map::new();
    if let (Some(host), false) = (row.text(Text::Host), is_question) {
        endpoint.insert("hostname".to_owned(), host.into());
    }
    if let Some(ip) = row.text(Text::Ip) {
        endpoint.insert("ip".to_owned(), ip.into());
    }
    if let Some(port) = row.number(Number::Port) {
        endpoint.insert("port".to_owned(), port.into());
    }
    if endpoint.is_empty() {
        // The resolver, or a socket that was refused before it was anywhere.
        let name = if is_question { "dns" } else { "none" };
        endpoint.insert("svc_name".to_owned(), name.into());
    }
    event.insert("dst_endpoint".to_owned(), Value::Object(endpoint));
    let mut connection = json!({ "direction_id": 2 });
    if let Some(transport) = row.text(Text::Transport) {
        connection["protocol_name"] = transport.into();
    }
    event.insert("connection_info".to_owned(), connection);
    if is_question {
        let detail: Value = serde_json::from_str(text(Text::Detail)).unwrap_or_default();
        let mut query = json!({ "hostname": text(Text::Host) });
        if let Some(kind) = detail["type"].as_str() {
            query["type"] = kind.into();
        }
        event.insert("query".to_owned(), query);
        let addresses = detail["addresses"].as_array().cloned().unwrap_or_default();
        let answers: Vec<Value> =
            addresses.into_iter().map(|address| json!({ "rdata": address })).collect();
        if !answers.is_empty() {
            event.insert("answers".to_owned(), answers.into());
        }
    }
}
