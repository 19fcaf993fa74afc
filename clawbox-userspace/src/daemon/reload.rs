//! SIGHUP: the configuration is read again. What can change while the daemon runs does, all of it or
//! nothing; what holds for its life is said and stays.

use std::path::Path;

use serde_json::Value;

use super::Daemon;
use super::config::Config;
use super::metrics::Metrics;
use super::standing;

/// Keys that hold for the daemon's life: what it has opened, pinned and loaded by them.
const FIXED: [&str; 8] = ["name", "socket", "trails", "state", "lsm", "refusals", "audit", "ship"];

/// A configuration that takes the place of another one.
#[derive(Debug)]
struct Next {
    config: Config,
    /// Keys whose values differ and come into force.
    changed: Vec<String>,
    /// Keys whose values differ and stay as they are.
    kept: Vec<String>,
}

/// The one that was read, but for what cannot change.
fn next(old: &Config, read: &Config) -> serde_json::Result<Next> {
    let (old, mut next) = (serde_json::to_value(old)?, serde_json::to_value(read)?);
    let (mut changed, mut kept) = (Vec::new(), Vec::new());
    for (key, value) in next.as_object_mut().into_iter().flatten() {
        let before = old.get(key).unwrap_or(&Value::Null);
        if value == before {
            continue;
        }
        if FIXED.contains(&key.as_str()) {
            value.clone_from(before);
            kept.push(key.clone());
        } else {
            changed.push(key.clone());
        }
    }
    Ok(Next { config: serde_json::from_value(next)?, changed, kept })
}

impl Daemon {
    /// Reads the configuration again and puts it in force. A mistake leaves everything as it was.
    pub(super) async fn reload(&mut self, file: Option<&Path>, metrics: &mut Metrics) {
        match self.try_reload(file, metrics).await {
            Ok(Next { changed, kept, .. }) => {
                for key in kept {
                    tracing::warn!("`{key}` stays as it is: restart the daemon to change it");
                }
                let changed = match changed.is_empty() {
                    true => "nothing has changed".to_owned(),
                    false => changed.join(", "),
                };
                tracing::info!("reloaded: {changed}");
            }
            Err(why) => tracing::error!("nothing is reloaded, all stays as it was: {why}"),
        }
    }

    async fn try_reload(
        &mut self,
        file: Option<&Path>,
        metrics: &mut Metrics,
    ) -> Result<Next, String> {
        let read = Config::read(file).map_err(|error| error.to_string())?;
        let found = next(&self.config, &read).map_err(|error| error.to_string())?;
        let rules = standing::read(&found.config.standing).map_err(|error| error.to_string())?;
        let at = &found.config.metrics;
        // What can fail comes first.
        let served = metrics.serve(at).await;
        served.map_err(|error| format!("no metrics at `{at}`: {error}"))?;
        self.config = found.config.clone();
        self.stand_by(rules).map_err(|error| format!("standing rules: {error}"))?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_opened_and_loaded_by_the_old_one_stays_and_is_named() {
        let old = Config::default();
        let text = "name: other\nlsm: require\nrefusals: true\nstate: /srv/state\nsocket: /srv/s\n\
                    trails: /srv/trails\ndns: [192.0.2.53]\nmetrics: 127.0.0.1:9464\n\
                    limits: { sandboxes_per_user: 3 }\naudit: { quota: 4G }\n\
                    ship: { nats: { servers: [\"nats://192.0.2.1\"] } }\n";
        let next = next(&old, &Config::parse(text).unwrap()).unwrap();
        let mut kept: Vec<&str> = next.kept.iter().map(String::as_str).collect();
        kept.sort_unstable();
        let mut fixed = FIXED;
        fixed.sort_unstable();
        assert_eq!(kept, fixed);
        for key in ["dns", "metrics", "limits"] {
            assert!(next.changed.iter().any(|changed| changed == key), "{key}: {next:?}");
        }
        assert_eq!((&next.config.name, next.config.lsm), (&old.name, old.lsm));
        assert_eq!(next.config.dns, ["192.0.2.53"]);
        assert_eq!(next.config.limits.sandboxes_per_user, 3);
    }

    #[test]
    fn every_fixed_key_is_one() {
        let config = serde_json::to_value(Config::default()).unwrap();
        assert!(FIXED.iter().all(|key| config.get(key).is_some()));
    }
}
