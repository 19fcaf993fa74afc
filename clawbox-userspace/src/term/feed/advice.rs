//! What a sandbox's policy says of an endpoint for a program: asked of the decisions that the kernel runs.

use std::path::Path;
use std::sync::Arc;

use clawbox_common::rule::TCP;

use super::super::cards::{Advice, Key};
use super::super::plain::plain;
use crate::api::client::Client;
use crate::api::{convert, proto};
use crate::judge::{Deed, Judge, Who};
use crate::policy::load_texts;
use crate::sandbox::change::with_approved;
use crate::sandbox::control::Text;
use crate::why::{nearest, reasons};

/// Asks for a card; `None` where the sandbox has ended.
pub(super) async fn of(client: &Client, key: &Key) -> Option<Advice> {
    let request = proto::GetPolicyRequest { sandbox: key.sandbox.clone() };
    let reply = client.sandboxes().get_policy(request).await.ok()?.into_inner();
    let texts = with_approved(convert::own_texts(reply.texts), &reply.approved);
    let (key, revision) = (key.clone(), reply.revision);
    let advice = tokio::task::spawn_blocking(move || advise(&texts, &key)).await.ok()?;
    Some(Advice { revision, ..advice })
}

fn advise(texts: &[Text], key: &Key) -> Advice {
    let unknown = || Advice {
        says: vec!["this clawbox cannot read the policy".to_owned()],
        names_program: true,
        ..Advice::default()
    };
    let named: Vec<(Arc<str>, String)> =
        texts.iter().map(|text| (text.name.as_str().into(), text.text.clone())).collect();
    let Ok(loaded) = load_texts(&named) else { return unknown() };
    let Ok(judge) = Judge::of(loaded.policy, None) else { return unknown() };
    let program = judge.spelt(Path::new(&key.program));
    let who = Who::from(program.as_path());
    let deed = Deed::Connect { host: key.host.clone(), port: key.port, transport: TCP };
    let judged = judge.ask(&who, &deed);
    let told = reasons::of(judged.reason.name());
    let mut says = vec![match &judged.rule {
        Some(rule) => format!("{}: {rule}", judged.verdict_name()),
        None => format!("{} ({}): {}", judged.verdict_name(), judged.reason.name(), told.meaning),
    }];
    says.extend(judged.remarks.iter().cloned());
    if let Some(near) = nearest::to(&judge, &who, &deed).filter(|_| !judged.is_allowed()) {
        says.push(format!("nearest: {}; {}", near.rule, near.differs.join(", ")));
    }
    let mut binaries = judge.image().binaries.iter();
    let names_program = binaries.any(|entry| entry.pattern.matches(&program));
    let program =
        if key.program.is_empty() { String::new() } else { program.display().to_string() };
    Advice {
        says: says.iter().map(|said| plain(said)).collect(),
        names_program,
        program,
        revision: 0,
    }
}
