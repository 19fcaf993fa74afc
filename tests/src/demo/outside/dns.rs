//! A name server for the demo's zone. Each question that arrives is written down before it is
//! answered, whatever it asks.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};

use hickory_proto::op::{Message, Metadata, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

use super::sightings::{Sighting, Sightings};

/// Which names there are.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    exact: BTreeMap<String, Ipv4Addr>,
    /// Everything below this one exists too, as where somebody reads what a tunnel brings.
    below: Option<(String, Ipv4Addr)>,
}

impl Zone {
    /// A zone of these names.
    pub fn of<'a>(names: impl IntoIterator<Item = (&'a str, Ipv4Addr)>) -> Self {
        let exact = names.into_iter().map(|(name, address)| (name.to_owned(), address)).collect();
        Self { exact, below: None }
    }

    /// And whatever is below `name`.
    #[must_use]
    pub fn and_below(mut self, name: &str, address: Ipv4Addr) -> Self {
        self.below = Some((format!(".{name}"), address));
        self
    }

    fn find(&self, name: &str) -> Option<Ipv4Addr> {
        let name = name.to_ascii_lowercase();
        let below = self.below.iter().find(|(suffix, _)| name.ends_with(suffix.as_str()));
        self.exact.get(&name).copied().or(below.map(|(_, address)| *address))
    }
}

/// Answers until the socket is gone.
pub(super) fn serve(socket: &UdpSocket, zone: &Zone, sightings: &Sightings) {
    let mut buffer = [0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        if let Some(reply) = answer(&buffer[..length], zone, sightings) {
            // A client that is gone is not waited for.
            let _ = socket.send_to(&reply, client);
        }
    }
}

fn answer(packet: &[u8], zone: &Zone, sightings: &Sightings) -> Option<Vec<u8>> {
    let asked = Message::from_vec(packet).ok()?;
    let query = asked.queries.first()?;
    let mut name = query.name().to_ascii();
    if name.len() > 1 {
        name.truncate(name.trim_end_matches('.').len());
    }
    sightings.add(Sighting::Question { name: name.clone() });
    let mut reply = Message::response(asked.id, asked.op_code);
    reply.metadata = Metadata::response_from_request(&asked.metadata);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_available = true;
    reply.add_query(query.clone());
    match zone.find(&name) {
        Some(address) if query.query_type() == RecordType::A => {
            let data = RData::A(address.into());
            reply.add_answer(Record::from_rdata(query.name().clone(), 60, data));
        }
        Some(_) => {}
        None => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    reply.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;

    fn ask(name: &str, kind: RecordType) -> (Message, String) {
        let zone = Zone::of([("a.test", Ipv4Addr::new(192, 0, 2, 1))])
            .and_below("evil.test", Ipv4Addr::new(192, 0, 2, 2));
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let sightings = Sightings::default();
        let reply = answer(&message.to_vec().unwrap(), &zone, &sightings).unwrap();
        (Message::from_vec(&reply).unwrap(), sightings.take(0).to_string())
    }

    #[test]
    fn every_question_is_written_down_and_known_names_are_answered() {
        let (reply, seen) = ask("A.test.", RecordType::A);
        assert_eq!((reply.answers.len(), seen.as_str()), (1, "DNS A.test"));
        assert_eq!(ask("tunnel.evil.test.", RecordType::A).0.answers.len(), 1);
        assert_eq!(ask("a.test.", RecordType::AAAA).0.answers.len(), 0);
        let (reply, seen) = ask("b.test.", RecordType::A);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(seen, "DNS b.test");
    }
}
