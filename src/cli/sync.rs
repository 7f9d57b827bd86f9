//! Composes a replication: checks, discovery, lanes, watchers, display, and an orderly end.
//!
//! Nothing is written to the target before every check has passed.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::args::SyncArgs;
use super::progress::{Progress, Screen};
use super::signals::{self, StopSwitch};
use super::summary;
use crate::control::discover::{discover, warn_of_unused_rewrites};
use crate::control::fence::FenceService;
use crate::control::http::StatusServer;
use crate::control::listing::ListService;
use crate::control::lookup::LookupService;
use crate::control::mend::MendService;
use crate::control::preflight;
use crate::control::takeover;
use crate::control::watcher::Watcher;
use crate::engine::options::{Deployment, OwnKeys, SyncOptions, SyncPlan};
use crate::engine::shared::{CatchUp, Shared};
use crate::fault::{Fault, FaultKind, Side};
use crate::limits::PROGRESS_INTERVAL_MS;
use crate::runtime::{self, RuntimeHandle};

/// Runs until told to stop, or until caught up with `--once`. Ends with the fault of the first lane that failed.
pub fn run(args: SyncArgs) -> Result<(), Fault> {
    let started = Instant::now();
    let options = args.options(|name| std::env::var(name).ok())?;
    let switch = signals::install()?;
    let screen = Screen::new();
    screen.start_log();
    runtime::check()?;
    let plan = find(options)?;
    replicate(plan, started, &switch, &screen)
}

/// Discovery and every check that needs the servers.
fn find(options: SyncOptions) -> Result<SyncPlan, Fault> {
    let source = discover(Side::Source, &options.source)?;
    let mut target = discover(Side::Target, &options.target)?;
    // One that is empty holds nothing of ours either.
    let own_keys = match target.keys() {
        0 => Ok(OwnKeys::default()),
        _ => takeover::own_keys(&options.link, &options.target, &target.topology),
    };
    target.bookkeeping = match own_keys {
        // The checks that follow name the rule.
        Err(fault) if fault.kind == FaultKind::NoPermission => OwnKeys::default(),
        found => found?,
    };
    describe(Side::Source, &source);
    describe(Side::Target, &target);
    warn_of_unused_rewrites(&[
        (&options.source, &source.topology),
        (&options.target, &target.topology),
    ]);
    for notice in preflight::check(&options, &source, &target)? {
        warn!("{notice}");
    }
    Ok(SyncPlan {
        options,
        source,
        target,
    })
}

fn describe(side: Side, deployment: &Deployment) {
    let masters = deployment.topology.serving().count();
    let first = deployment.topology.shards.first();
    let name = first.map(|shard| shard.master.name()).unwrap_or_default();
    let version = deployment.servers.first();
    let version = version.map(|(_, server)| format!("{} {}", server.flavour, server.version));
    let version = version.unwrap_or_default();
    match deployment.is_cluster() {
        true => info!("{side}: {version} cluster with {masters} masters"),
        false => info!("{side}: {version} server {name}"),
    }
}

fn replicate(
    plan: SyncPlan,
    started: Instant,
    switch: &StopSwitch,
    screen: &Screen,
) -> Result<(), Fault> {
    let options = plan.options.clone();
    let shared = Arc::new(Shared::new(
        options.link.to_string(),
        started,
        plan.source.topology.clone(),
        plan.target.topology.clone(),
    ));
    let _status = match &options.status_address {
        None => None,
        Some(address) => {
            let server = StatusServer::start(address, &shared)?;
            info!("status at http://{}/status", server.address);
            Some(server)
        }
    };
    // The first that is written.
    let (link, target) = (&options.link, &options.target);
    let claim = takeover::claim(link, target, &plan.target.topology)?;
    let _lookup = LookupService::ask_source(&shared, &options.source.credentials)?;
    let _fence = FenceService::guard(&shared, &options.link, claim.epoch, &options.target)?;
    let credentials = &options.source.credentials;
    let _mend = MendService::ask_source(&shared, credentials)?;
    let _listing = ListService::list_slots(&shared, credentials, &options.target)?;
    // From here on a signal asks the lanes to end; it is kept if they have not started yet.
    switch.get_or_init(|| Arc::clone(&shared));
    let lanes = runtime::start(plan, claim, Arc::clone(&shared))?;
    let watcher = Watcher::start(&shared, &options.source, &options.target);
    let watcher = match watcher {
        Ok(watcher) => watcher,
        Err(fault) => {
            shared.request_stop();
            lanes.join()?;
            return Err(fault);
        }
    };
    let failed = follow(&shared, &lanes, options.once, screen);
    let joined = lanes.join();
    drop(watcher);
    // A lane may have failed after the last look.
    let failed = failed.or_else(|| first_fault(&shared)).or(joined.err());
    // Whoever closed standard output does not want it.
    let _ = writeln!(
        std::io::stdout(),
        "{}",
        summary::text(&shared, Instant::now())
    );
    match failed {
        Some(fault) => Err(fault),
        None => Ok(()),
    }
}

/// Shows the lanes until all have ended. The first fault of a lane stops the others.
fn follow(shared: &Shared, lanes: &RuntimeHandle, once: bool, screen: &Screen) -> Option<Fault> {
    let mut progress = Progress::new(screen);
    let mut catch_up = CatchUp::default();
    let mut failed: Option<Fault> = None;
    loop {
        progress.show(shared, Instant::now());
        if failed.is_none()
            && let Some(fault) = first_fault(shared)
        {
            error!("{fault}");
            failed = Some(fault);
            shared.request_stop();
        }
        if once
            && !shared.stop_requested()
            && shared.slots_settled()
            && catch_up.reached(&shared.lanes())
        {
            info!("every lane has caught up");
            shared.request_end();
        }
        if lanes.ended() {
            progress.finish();
            return failed;
        }
        std::thread::sleep(Duration::from_millis(PROGRESS_INTERVAL_MS));
    }
}

/// The fault of the first lane that failed, with the lane's source before it.
fn first_fault(shared: &Shared) -> Option<Fault> {
    let lanes = shared.lanes();
    let mut faults = lanes
        .iter()
        .filter_map(|lane| Some(lane.fault()?.at(format!("lane {}", lane.source()))));
    faults.next()
}
