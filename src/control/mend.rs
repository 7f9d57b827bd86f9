//! Answers the lanes' questions about keys that are to be mended, by asking their source masters.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{Client, value_text};
use super::service::Service;
use crate::engine::mending::{MendAnswer, MendQuestion};
use crate::engine::shared::Shared;
use crate::fault::{Fault, Policy, Side};
use crate::limits::{MAX_MASTERS, MEND_ANSWER_BYTES, WATCH_RETRY_MS};
use crate::mend::Answer;
use crate::resp::ErrorKind;
use crate::topology::{Credentials, Flavour, ServerInfo, Version};

/// `PEXPIRETIME` came with this release of Redis; every Valkey has it.
const KNOWS_DEADLINES: Version = Version::new(7, 0, 0);

pub type MendService = Service<MendQuestion, MendAnswer>;

impl MendService {
    /// Starts the thread; it connects with the first question.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn ask_source(shared: &Arc<Shared>, credentials: &Credentials) -> Result<Self, Fault> {
        let mut asker = Asker::new(credentials);
        Self::start(
            "mend",
            shared,
            |shared| &shared.mend,
            move |request| asker.answer(&request.question),
        )
    }
}

/// Connections to source masters. Blocks; one question at a time.
#[derive(Debug)]
pub struct Asker {
    credentials: Credentials,
    links: HashMap<(String, u16), Link>,
}

#[derive(Debug)]
enum Link {
    Open {
        client: Client,
        knows_deadlines: bool,
    },
    /// Not before this moment again: a dead master must not hold up the questions to others.
    Waiting(Instant),
}

impl Asker {
    pub fn new(credentials: &Credentials) -> Self {
        Self {
            credentials: credentials.clone(),
            links: HashMap::new(),
        }
    }

    /// One answer to one question. A connection that was found dead is opened anew, once.
    pub fn answer(&mut self, question: &MendQuestion) -> MendAnswer {
        let known = (question.address.clone(), question.port);
        let was_open = matches!(self.links.get(&known), Some(Link::Open { .. }));
        let mut asked = self.ask(question);
        if asked.is_err() && was_open {
            asked = self.ask(question);
        }
        match asked {
            Ok(answer) => answer,
            Err(fault) if fault.policy() == Policy::Stop => MendAnswer::Never(fault),
            Err(fault) => {
                let until = Instant::now() + Duration::from_millis(WATCH_RETRY_MS);
                self.links.insert(known, Link::Waiting(until));
                MendAnswer::Later(fault.message)
            }
        }
    }

    fn ask(&mut self, question: &MendQuestion) -> Result<MendAnswer, Fault> {
        let at = (question.address.clone(), question.port);
        if self.links.len() > MAX_MASTERS {
            self.links.clear();
        }
        let (mut client, knows_deadlines) = match self.links.remove(&at) {
            Some(Link::Open {
                client,
                knows_deadlines,
            }) => (client, knows_deadlines),
            Some(Link::Waiting(until)) if Instant::now() < until => {
                self.links.insert(at, Link::Waiting(until));
                let text = "the source master could not be reached a moment ago";
                return Ok(MendAnswer::Later(text.into()));
            }
            _ => self.connect(question)?,
        };
        let mut commands = Vec::new();
        let replies = question.keys.write(knows_deadlines, &mut commands);
        client.send_bytes(&commands)?;
        let bytes = client.receive_raw(replies as u64, MEND_ANSWER_BYTES)?;
        let answer = match question.keys.read(knows_deadlines, &bytes) {
            Answer::Taken(snapshot) => MendAnswer::Taken(snapshot),
            Answer::Refused(text) if ErrorKind::of(text.as_bytes()).passes() => {
                MendAnswer::Later(format!("source {} answered: {text}", client.name()))
            }
            Answer::Refused(text) => MendAnswer::Never(client.reply_fault(&text)),
            Answer::Nonsense => {
                MendAnswer::Never(client.shape_fault("DUMP", "no values and offset"))
            }
        };
        let link = Link::Open {
            client,
            knows_deadlines,
        };
        self.links.insert(at, link);
        Ok(answer)
    }

    fn connect(&self, question: &MendQuestion) -> Result<(Client, bool), Fault> {
        let (host, port) = (&question.address, question.port);
        let mut client = Client::connect(Side::Source, host, port, &self.credentials)?;
        let info = client.call(&["INFO"])?;
        let info = value_text(info).unwrap_or_default();
        let server = ServerInfo::parse(&info).map_err(|error| client.shape_fault("INFO", error))?;
        let knows = server.flavour == Flavour::Valkey || server.version >= KNOWS_DEADLINES;
        Ok((client, knows))
    }
}
