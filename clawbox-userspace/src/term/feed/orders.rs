//! What somebody wants done, as the daemon is asked for it.

use std::sync::Arc;

use super::super::cards::{Key, Scope, Way};
use super::super::state::{Deed, Order};
use crate::api::client::Client;
use crate::api::{convert, proto};
use crate::presets::edit::add_entries;
use crate::sandbox::change::APPROVED_HEAD;
use crate::sandbox::control::{Answer, Connection, Request};

/// The policies of before and after where one changed, or why it is not done.
type Outcome = Result<Option<(u32, u32)>, String>;

/// Has it done.
pub(super) async fn carry_out(client: &Client, order: &Order) -> Outcome {
    let sandbox = order.key.sandbox.as_str();
    match &order.deed {
        Deed::Approve(way, ids) => approve(client, &order.key, way, ids).await,
        Deed::Deny(ids) => each(client, sandbox, ids, |id| Request::Deny { id }).await,
        Deed::Withdraw(rule) => {
            changed(ask(client, sandbox, Request::WithdrawRule { rule: rule.clone() }).await?)
        }
        Deed::Rollback(revision, expected) => {
            let (sandbox, revision) = (sandbox.to_owned(), *revision);
            let request =
                proto::RollbackRequest { sandbox, revision, expected_revision: *expected };
            let answer = client.sandboxes().rollback(request).await;
            changed(own(answer.map_err(|status| status.message().to_owned())?.into_inner())?)
        }
    }
}

async fn approve(client: &Client, key: &Key, way: &Way, ids: &[u32]) -> Outcome {
    let sandbox = key.sandbox.as_str();
    let outcome = match (way.scope, ids.first()) {
        (Scope::Once, _) => {
            return each(client, sandbox, ids, |id| Request::Approve { id, lasting: false }).await;
        }
        // Only the daemon knows whether a rule is for who waits.
        (Scope::Session, Some(&id)) if !way.rule.contains("sni: verify") => {
            changed(ask(client, sandbox, Request::Approve { id, lasting: true }).await?)
        }
        (Scope::Session, _) => {
            let request = Request::ApproveRule { rule: way.rule.clone() };
            changed(ask(client, sandbox, request).await?)
        }
        (Scope::Policy, _) => to_policy(client, sandbox, &way.rule).await,
    }?;
    goes_on(client, key).await;
    Ok(outcome)
}

/// What waits for a rule that has just been made goes on, too: all that does by now. One that does not stays
/// on its card, and can be let go on by itself.
async fn goes_on(client: &Client, key: &Key) {
    let sandbox = key.sandbox.as_str();
    let Ok(Answer::Waiting { connections }) = ask(client, sandbox, Request::Waiting).await else {
        return;
    };
    let is_like = |waits: &&Connection| {
        let program = waits.program.as_deref().unwrap_or_default();
        (waits.host.as_str(), waits.port, program) == (key.host.as_str(), key.port, &key.program)
    };
    let ids: Vec<u32> = connections.iter().filter(is_like).map(|waits| waits.id).collect();
    let once = |id| Request::Approve { id, lasting: false };
    drop(each(client, sandbox, &ids, once).await);
}

/// Each of those that still wait; an error where none does.
async fn each(
    client: &Client,
    sandbox: &str,
    ids: &[u32],
    request: impl Fn(u32) -> Request,
) -> Outcome {
    let mut outcome = Err("nothing waits any longer".to_owned());
    for id in ids {
        match ask(client, sandbox, request(*id)).await {
            Ok(_) => outcome = Ok(None),
            Err(why) if outcome.is_err() => outcome = Err(why),
            Err(_) => {}
        }
    }
    outcome
}

/// A revision of the policy with one more entry, comments kept.
async fn to_policy(client: &Client, sandbox: &str, rule: &str) -> Outcome {
    let sandbox = sandbox.to_owned();
    let said = |status: tonic::Status| status.message().to_owned();
    let request = proto::GetPolicyRequest { sandbox: sandbox.clone() };
    let reply = client.sandboxes().get_policy(request).await.map_err(said)?.into_inner();
    let (before, mut texts) = (reply.revision, reply.texts);
    let first = texts.first_mut().ok_or_else(|| format!("`{sandbox}` has no policy"))?;
    let (name, added): (Arc<str>, Arc<str>) = (first.name.as_str().into(), "approved".into());
    let fragment = format!("{APPROVED_HEAD}{rule}");
    let after = add_entries((&name, &first.text), (&added, &fragment)).map_err(|mistakes| {
        mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    })?;
    first.text = after;
    let request = proto::SetPolicyRequest { sandbox, texts, expected_revision: before };
    let answer = client.sandboxes().set_policy(request).await.map_err(said)?.into_inner();
    changed(own(answer)?)
}

async fn ask(client: &Client, sandbox: &str, request: Request) -> Result<Answer, String> {
    let answer = client.ask(sandbox, request).await.map_err(|error| error.to_string())?;
    refusal(answer)
}

fn own(answer: proto::Answer) -> Result<Answer, String> {
    let other = || "the daemon's answer is not of this version of clawbox".to_owned();
    refusal(convert::own_answer(answer).ok_or_else(other)?)
}

fn refusal(answer: Answer) -> Result<Answer, String> {
    match answer {
        Answer::Refused { why, parts } if parts.is_empty() => Err(why),
        Answer::Refused { why, parts } => Err(format!("{why}: {}", parts.join("; "))),
        Answer::DoesNotLoad { errors } => Err(errors.join("; ")),
        done => Ok(done),
    }
}

/// The policies of before and after.
#[expect(clippy::unnecessary_wraps, reason = "it is what each way of approving gives")]
fn changed(answer: Answer) -> Outcome {
    Ok(match answer {
        Answer::Changed { generation, .. }
        | Answer::Approved { generation: Some(generation), .. } => {
            Some((generation.saturating_sub(1), generation))
        }
        _ => None,
    })
}
