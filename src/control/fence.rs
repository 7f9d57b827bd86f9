//! Answers the lanes' questions about target masters before they write to them; see [`crate::engine::fence`].

use std::sync::Arc;

use super::client::Client;
use super::masters::{Masters, run_of};
use super::service::Service;
use super::takeover;
use super::writers::{self, Connected};
use crate::checkpoint::{LinkName, Mark, watermark_key};
use crate::engine::desk::Request;
use crate::engine::fence::{FenceAnswer, FenceQuestion};
use crate::engine::shared::Shared;
use crate::fault::{Fault, FaultKind, Side};
use crate::resp::push_command;
use crate::topology::{Endpoint, Node, TopologyKind, Value};

pub type FenceService = Service<FenceQuestion, FenceAnswer>;

impl FenceService {
    /// Starts the thread. `epoch`: the one that this process has claimed.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn guard(
        shared: &Arc<Shared>,
        link: &LinkName,
        epoch: u32,
        target: &Endpoint,
    ) -> Result<Self, Fault> {
        let (_, topology) = shared.target.load();
        let mut fence = Fence {
            shared: Arc::clone(shared),
            link: link.clone(),
            epoch,
            endpoint: target.clone(),
            masters: Masters::new(target, &topology),
        };
        Self::start(
            "fence",
            shared,
            |shared| &shared.fence,
            move |request| fence.answer(request),
        )
    }
}

struct Fence {
    shared: Arc<Shared>,
    link: LinkName,
    epoch: u32,
    endpoint: Endpoint,
    masters: Masters,
}

impl Fence {
    fn answer(&mut self, request: &Request<FenceQuestion>) -> FenceAnswer {
        self.look(request).unwrap_or_else(|fault| {
            self.masters.disconnect();
            FenceAnswer::Failed(fault)
        })
    }

    fn look(&mut self, request: &Request<FenceQuestion>) -> Result<FenceAnswer, Fault> {
        let question = &request.question;
        self.masters.suggest(&self.shared.target.load().1);
        self.masters.refresh()?;
        takeover::hold(&self.link, self.epoch, &mut self.masters)?;
        let node = &question.node;
        let credentials = &self.endpoint.credentials;
        let run = match Client::connect(Side::Target, &node.address, node.port, credentials) {
            Ok(mut client) => {
                self.refuse_other(&mut client, node)?;
                let writer = (self.epoch, request.lane);
                self.kill_former(&mut client, writer, question.connected)?;
                let run = run_of(&mut client)?;
                run.filter(|_| question.connected)
            }
            Err(fault) if question.connected => return Err(fault),
            // Nobody executes anything there, and if it comes back the lane has no connection to it.
            Err(_) => None,
        };
        let slots = question.slots.iter().copied().collect();
        let link = &self.link;
        let get =
            |slot, out: &mut Vec<u8>| push_command(out, &[b"GET", &watermark_key(link, slot)]);
        let found = self.masters.ask_slots(&slots, get)?.into_iter();
        let watermarks = found.filter_map(|(slot, value)| {
            let mark: Mark = value.text()?.parse().ok()?;
            Some((slot, mark.watermark))
        });
        Ok(FenceAnswer::Clear {
            run,
            watermarks: watermarks.collect(),
        })
    }

    /// Addresses change hands: what is written for one master must not go to another one.
    fn refuse_other(&self, client: &mut Client, node: &Node) -> Result<(), Fault> {
        // A node that only a redirect has named is not known by its id yet.
        if !self.masters.topology().has_node(&node.id) {
            return Ok(());
        }
        if self.masters.topology().kind == TopologyKind::Single {
            return Ok(());
        }
        let said = match client.ask(&["CLUSTER", "MYID"])? {
            Value::Error(text) if text.contains("cluster support disabled") => text,
            // The user may not ask.
            Value::Error(_) => return Ok(()),
            id => id.text().unwrap_or_default().to_owned(),
        };
        if said == node.id {
            return Ok(());
        }
        let text = format!(
            "another node listens at target {} by now: {said}",
            node.name()
        );
        Err(Fault::new(FaultKind::TryAgain, text))
    }

    /// Kills the lane's connections to a master, but for the newest if it is `connected`.
    fn kill_former(
        &self,
        client: &mut Client,
        writer: (u32, u32),
        connected: bool,
    ) -> Result<(), Fault> {
        let ours = |found: &Connected| {
            found.writer.link == self.link && found.writer.claim == Some(writer)
        };
        // Ids grow with every connection.
        let number = |found: &Connected| found.id.parse::<u64>().ok();
        let all = writers::connected(client)?;
        let newest = all
            .iter()
            .filter(|found| ours(found))
            .filter_map(number)
            .max();
        let spared = newest.filter(|_| connected);
        writers::shut_out(client, |found| ours(found) && number(found) != spared)
    }
}
