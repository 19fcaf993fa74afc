//! OpenTelemetry: each event a log record, sent to a collector of this host by OTLP over gRPC.

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

use super::{Failure, Receiver, Taker, Way, host_name};
use crate::audit::store::event;
use crate::audit::store::read::Row;
use crate::audit::store::schema::Text;

/// How long a collector may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a collector is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Otlp {
    /// `http://HOST:PORT`, of loopback: what goes further is encrypted by the collector.
    pub endpoint: String,
    /// What this host is called; its host name if nothing is said.
    #[serde(default)]
    pub host: Option<String>,
}

impl Otlp {
    /// Whether it can be used.
    ///
    /// # Errors
    /// What cannot.
    pub fn check(&self) -> Result<(), String> {
        let wrong =
            || format!("`ship.otlp.endpoint: {}`: as in http://127.0.0.1:4317", self.endpoint);
        let uri: tonic::transport::Uri = self.endpoint.parse().map_err(|_| wrong())?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_here = host == "localhost"
            || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
        if uri.scheme_str() == Some("http") && is_here { Ok(()) } else { Err(wrong()) }
    }
}

/// Events on their way to the collector.
pub(super) struct Sender {
    pub otlp: Otlp,
    pub way: Way,
}

/// A collector that answers.
struct Collector {
    client: LogsServiceClient<Channel>,
    host: String,
}

impl Taker for Collector {
    async fn take(&mut self, rows: &[Row<'_>]) -> Result<(), Failure> {
        let records = rows.iter().map(|row| record(*row)).collect();
        export(&mut self.client, &self.host, records).await
    }
}

impl Receiver for Sender {
    fn shipped(&self) -> u64 {
        self.way.marks.shipped()
    }

    async fn ship(&mut self) -> Result<Infallible, Failure> {
        let endpoint = Endpoint::from_shared(self.otlp.endpoint.clone())?;
        let endpoint = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE);
        let client = LogsServiceClient::new(endpoint.connect().await?);
        let host = self.otlp.host.clone().unwrap_or_else(host_name);
        self.way.ship(&mut Collector { client, host }).await
    }
}

/// Sends records, which the collector has taken when this returns.
async fn export(
    collector: &mut LogsServiceClient<Channel>,
    host: &str,
    log_records: Vec<LogRecord>,
) -> Result<(), Failure> {
    let scope = InstrumentationScope {
        name: "clawbox".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    let attributes = vec![text("service.name", "clawbox"), text("host.name", host)];
    let resource = Resource { attributes, ..Default::default() };
    let scope_logs = ScopeLogs { scope: Some(scope), log_records, ..Default::default() };
    let resource_logs = ResourceLogs {
        resource: Some(resource),
        scope_logs: vec![scope_logs],
        ..Default::default()
    };
    let request = ExportLogsServiceRequest { resource_logs: vec![resource_logs] };
    let answer = collector.export(request).await?.into_inner();
    if let Some(part) = answer.partial_success.filter(|part| part.rejected_log_records > 0) {
        // The protocol forbids to send them again.
        let (count, why) = (part.rejected_log_records, part.error_message);
        tracing::warn!(count, "the collector has refused records: {why}");
    }
    Ok(())
}

/// An event as a log record.
fn record(row: Row<'_>) -> LogRecord {
    let nanoseconds = |micros: i64| u64::try_from(micros).unwrap_or(0).saturating_mul(1_000);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let of = |column| row.text(column).unwrap_or_default();
    let severity = match (of(Text::Class), of(Text::Verdict)) {
        ("gap", _) => SeverityNumber::Error,
        (_, "deny") => SeverityNumber::Warn,
        _ => SeverityNumber::Info,
    };
    let attributes = event::object(row).into_iter().filter(|(key, _)| key != "time");
    LogRecord {
        time_unix_nano: nanoseconds(row.micros()),
        observed_time_unix_nano: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        severity_number: severity.into(),
        severity_text: of(Text::Verdict).to_owned(),
        body: Some(AnyValue { value: Some(Any::StringValue(event::line(row))) }),
        attributes: attributes.map(|(key, value)| attribute(&key, value)).collect(),
        event_name: format!("clawbox.{}", of(Text::Action)),
        ..Default::default()
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Bool(is_so) => Any::BoolValue(is_so),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Any::IntValue(number),
            None => Any::StringValue(number.to_string()),
        },
        Value::String(text) => Any::StringValue(text),
        other => Any::StringValue(other.to_string()),
    };
    let (key, value) = (format!("clawbox.{key}"), Some(AnyValue { value: Some(value) }));
    KeyValue { key, value, ..Default::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Any::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_one_of_this_host() {
        let at = |endpoint: &str| Otlp { endpoint: endpoint.to_owned(), host: None }.check();
        for endpoint in ["http://127.0.0.1:4317", "http://[::1]:4317", "http://localhost:4317"] {
            at(endpoint).unwrap();
        }
        for endpoint in ["http://192.0.2.1:4317", "https://127.0.0.1:4317", "127.0.0.1:4317", ""] {
            assert!(at(endpoint).unwrap_err().contains("ship.otlp"), "{endpoint}");
        }
    }
}
