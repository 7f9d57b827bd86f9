//! The files of the lanes' spools, on one thread, so that a slow disk never holds a core up.
//!
//! ```text
//! DIR/lock-<link>                 held while a process uses the directory for this link
//! DIR/<process>-<spool>.<number>  segments, with the name of their link in them
//! ```
//!
//! Several links may share a directory: what is another's, or no segment, is not touched.
//!
//! The thread takes orders from all lanes in turn. A result is left on the lane's desk and rung through an eventfd that the
//! lane's core watches like a socket, so that it wakes at once. The directory is made when a lane first needs it.
//!
//! Files are read and written through the page cache and not flushed. On a shared virtual machine blocks of 1 MiB were so
//! written at 1.4 to 2.0 GB/s and read back at 1.6 to 1.8; past the cache (`O_DIRECT`) at 0.9 to 1.2 and 0.5 to 0.8; with
//! `fdatasync` after each 64 MiB they were written at 0.05 to 0.08, slower than a source can send.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, eventfd};

use super::ring::{Ring, Watch};
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::spool::{Order, Survey, survey};

/// The result of an order, under its ticket.
pub type Outcome = (u64, Result<Vec<u8>, String>);

/// The directory of a link's spools, which may not exist yet.
#[derive(Debug)]
pub struct Directory {
    path: Option<PathBuf>,
    link: String,
    lock: Option<File>,
    /// Another process had it at the last try.
    contended: bool,
}

/// The thread that works on the files.
#[derive(Debug)]
pub(super) struct SpoolFiles {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Tells the files of this process from those of former ones.
    process: u64,
    /// How many spools it has begun.
    begun: AtomicU32,
}

/// Segments that nobody writes to, by the name of their spool.
pub(super) type Found = Vec<(String, Vec<Survey>)>;

/// One lane's files.
#[derive(Debug, Clone)]
pub(super) struct LaneFiles {
    jobs: Sender<Job>,
    name: Arc<str>,
}

/// A lane's way to its files, on its core.
pub(super) struct LaneDesk {
    files: LaneFiles,
    /// Made with the first order.
    desk: Option<(Watch, Arc<Desk>)>,
    /// Results of orders that could not be handed over.
    refused: Vec<Outcome>,
}

enum Job {
    Order {
        name: Arc<str>,
        ticket: u64,
        order: Order,
        desk: Arc<Desk>,
    },
    /// Tell what is there: of one spool, or of all.
    Survey {
        name: Option<String>,
        tell: Sender<Result<Found, String>>,
    },
    /// Delete these segments.
    Discard { name: String, segments: Vec<u64> },
}

/// Where results are left for a lane.
#[derive(Debug)]
struct Desk {
    results: Mutex<Vec<Outcome>>,
    bell: OwnedFd,
}

impl Directory {
    /// `path`: `None` if no directory is known.
    pub fn new(path: Option<PathBuf>, link: &str) -> Self {
        Self {
            path,
            link: link.to_owned(),
            lock: None,
            contended: false,
        }
    }

    /// What is there of this link, by the name of the spool: for [`crate::spool::recover`]. `only`: of this spool.
    ///
    /// # Errors
    /// When the directory is there and cannot be used.
    pub fn spools(&mut self, only: Option<&str>) -> Result<Found, String> {
        let mut found = Found::new();
        for (name, path) in self.segments()? {
            if only.is_some_and(|only| only != name) {
                continue;
            }
            let read = File::open(&path).and_then(|file| {
                let mut file = BufReader::with_capacity(1 << 20, file);
                survey(&mut file, &self.link)
            });
            let Some(survey) = read.map_err(|error| told(&error, &path))? else {
                continue;
            };
            match found.iter_mut().find(|(known, _)| *known == name) {
                Some((_, surveys)) => surveys.push(survey),
                None => found.push((name, vec![survey])),
            }
        }
        Ok(found)
    }

    /// The segments that there are; takes the directory if it exists.
    fn segments(&mut self) -> Result<Vec<(String, PathBuf)>, String> {
        let Some(path) = self.path.clone().filter(|path| path.exists()) else {
            return Ok(Vec::new());
        };
        self.take()?;
        let entries = fs::read_dir(&path).map_err(|error| told(&error, &path))?;
        let names = entries
            .filter_map(|entry| Some((entry.as_ref().ok()?.file_name(), entry.ok()?.path())));
        Ok(names
            .filter_map(|(name, path)| {
                let (spool, number) = name.to_str()?.split_once('.')?;
                number.parse::<u64>().ok()?;
                Some((spool.to_owned(), path))
            })
            .collect())
    }

    /// Whether the directory is there, and another process has it.
    fn is_taken(&mut self) -> bool {
        let there = self.path.as_ref().is_some_and(|path| path.exists());
        there && self.take().is_err() && self.contended
    }

    /// Makes the directory, unless it is there, and takes it for this process.
    fn take(&mut self) -> Result<&Path, String> {
        let path = self
            .path
            .as_deref()
            .ok_or("no directory is known, since HOME is not set; name one with --spool-dir")?;
        if self.lock.is_none() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|error| told(&error, path))?;
            let name = path.join(format!("lock-{}", self.link));
            let mut options = OpenOptions::new();
            options.create(true).write(true).truncate(false).mode(0o600);
            let file = options.open(&name).map_err(|error| told(&error, &name))?;
            let locked = file.try_lock();
            self.contended = matches!(locked, Err(fs::TryLockError::WouldBlock));
            locked.map_err(|error| match error {
                fs::TryLockError::WouldBlock => format!(
                    "{} is used by another slotstream for link {}; give each its own --link or --spool-dir",
                    path.display(),
                    self.link
                ),
                fs::TryLockError::Error(error) => told(&error, &name),
            })?;
            self.lock = Some(file);
        }
        Ok(path)
    }

    fn execute(&mut self, name: &str, order: &Order) -> Result<Vec<u8>, String> {
        let (Order::Create { segment, .. }
        | Order::Write { segment, .. }
        | Order::Read { segment, .. }
        | Order::Delete { segment }) = order;
        let path = self.take()?.join(format!("{name}.{segment}"));
        work(&path, order).map_err(|error| told(&error, &path))
    }
}

fn work(path: &Path, order: &Order) -> io::Result<Vec<u8>> {
    let open = || OpenOptions::new().write(true).open(path);
    match order {
        Order::Create { bytes, .. } => {
            let mut options = OpenOptions::new();
            options.create(true).write(true).truncate(true).mode(0o600);
            options.open(path)?.write_all_at(bytes, 0)?;
        }
        Order::Write { at, bytes, .. } => open()?.write_all_at(bytes, *at)?,
        Order::Read { at, length, .. } => {
            let mut bytes = vec![0; *length];
            File::open(path)?.read_exact_at(&mut bytes, *at)?;
            return Ok(bytes);
        }

        Order::Delete { .. } => fs::remove_file(path)?,
    }
    Ok(Vec::new())
}

/// One line that names the file and, where it is known, what to do.
fn told(error: &io::Error, path: &Path) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("no space left for {path}")
        }
        io::ErrorKind::FileTooLarge => {
            format!("{path} may not grow: the limit on file sizes is reached")
        }
        _ => format!("{path}: {error}"),
    }
}

impl SpoolFiles {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the machine refuses a thread.
    pub fn start(mut directory: Directory) -> Result<Self, Fault> {
        let (jobs, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("spool".into())
            .spawn(move || run(&mut directory, &queue))
            .map_err(|error| {
                let text = format!("cannot start a thread: {error}");
                Fault::new(FaultKind::Runtime, text)
            })?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let process = since.map_or(0, |since| since.as_nanos() as u64);
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            process,
            begun: AtomicU32::new(0),
        })
    }

    fn jobs(&self) -> &Sender<Job> {
        self.jobs.as_ref().expect("not finished")
    }

    /// A name that no spool has.
    pub fn new_name(&self) -> String {
        let number = self.begun.fetch_add(1, Relaxed);
        format!("{:x}-{number}", self.process)
    }

    /// For a lane whose spool has this name.
    pub fn named(&self, name: &str) -> LaneFiles {
        LaneFiles {
            jobs: self.jobs().clone(),
            name: name.into(),
        }
    }

    /// What is on disk when all that was ordered is done: of one spool, to which nobody writes any more, or of all that a
    /// former process left. That one is waited for if it has not ended yet.
    ///
    /// # Errors
    /// When the directory is there and cannot be used.
    pub fn survey(&self, name: Option<&str>) -> Result<Found, String> {
        let (tell, told) = channel();
        let name = name.map(str::to_owned);
        let asked = self.jobs().send(Job::Survey { name, tell });
        let answer = asked.ok().and_then(|()| told.recv().ok());
        answer.unwrap_or_else(|| Err("the thread that works on its files has ended".into()))
    }

    /// Deletes segments that nobody will go on with.
    pub fn discard(&self, name: &str, segments: impl Iterator<Item = u64>) {
        // What is not deleted now is found by the next process.
        let _ = self.jobs().send(Job::Discard {
            name: name.to_owned(),
            segments: segments.collect(),
        });
    }

    /// Waits until what was ordered is done. All lanes must have ended.
    pub fn finish(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and cost no more than what was spooled.
            let _ = thread.join();
        }
    }
}

fn run(directory: &mut Directory, queue: &Receiver<Job>) {
    for job in queue {
        match job {
            Job::Order {
                name,
                ticket,
                order,
                desk,
            } => {
                let result = directory.execute(&name, &order);
                drop(order);
                desk.leave((ticket, result));
            }
            Job::Survey { name, tell } => {
                let begun = Instant::now();
                while directory.is_taken() && begun.elapsed() < limits::SPOOL_LOCK_PATIENCE {
                    std::thread::sleep(limits::TICK);
                }
                let _ = tell.send(directory.spools(name.as_deref()));
            }
            Job::Discard { name, segments } => {
                for segment in segments {
                    if let Err(why) = directory.execute(&name, &Order::Delete { segment }) {
                        tracing::warn!("spool: {why}");
                    }
                }
            }
        }
    }
}

impl Desk {
    fn locked(&self) -> MutexGuard<'_, Vec<Outcome>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, outcome: Outcome) {
        self.locked().push(outcome);
        // The counter is read before it could overflow: a lane has few orders open.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

impl LaneDesk {
    pub fn new(files: LaneFiles) -> Self {
        Self {
            files,
            desk: None,
            refused: Vec::new(),
        }
    }

    /// Hands an order over.
    pub fn submit(&mut self, ring: &Ring, ticket: u64, order: Order) {
        let refusal = match self.desk(ring) {
            Err(error) => format!("no event descriptor: {error}"),
            Ok(desk) => {
                let job = Job::Order {
                    name: Arc::clone(&self.files.name),
                    ticket,
                    order,
                    desk,
                };
                match self.files.jobs.send(job) {
                    Ok(()) => return,
                    Err(_) => "the thread that works on its files has ended".into(),
                }
            }
        };
        self.refused.push((ticket, Err(refusal)));
    }

    fn desk(&mut self, ring: &Ring) -> io::Result<Arc<Desk>> {
        if let Some((_, desk)) = &self.desk {
            return Ok(Arc::clone(desk));
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let watch = ring.watch(bell.as_fd())?;
        let desk = Arc::new(Desk {
            results: Mutex::default(),
            bell,
        });
        self.desk = Some((watch, Arc::clone(&desk)));
        Ok(desk)
    }

    /// Whether there may be results.
    pub fn has_results(&self) -> bool {
        let desk = self.desk.as_ref();
        desk.is_some_and(|(watch, _)| watch.readiness.is_readable()) || !self.refused.is_empty()
    }

    pub fn take_results(&mut self) -> Vec<Outcome> {
        let mut results = std::mem::take(&mut self.refused);
        if let Some((watch, desk)) = &self.desk {
            // First silenced, then looked at: what is left after that rings again.
            watch.readiness.drained();
            let _ = rustix::io::read(&desk.bell, &mut [0; 8]);
            results.append(&mut desk.locked());
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Offset, ReplicationId};
    use crate::spool::{Budget, Settings, Spool, recover};
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    const LINK: &str = "link";
    const START: u64 = 5_000;

    /// A directory that does not exist yet.
    fn place(name: &str) -> PathBuf {
        let name = format!("slotstream-spool-files-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        path.join("made/when/needed")
    }

    fn directory(path: &Path) -> Directory {
        Directory::new(Some(path.to_owned()), LINK)
    }

    fn settings() -> Settings {
        Settings {
            block_bytes: 10_000,
            memory_blocks: 8,
            segment_blocks: 4,
            ..Settings::new(LINK.into(), Arc::new(Budget::new(1 << 30)))
        }
    }

    /// A lane that does nothing but spool.
    struct Rig {
        files: SpoolFiles,
        ring: Ring,
        desk: LaneDesk,
        spool: Spool,
    }

    impl Rig {
        fn new(files: SpoolFiles, name: &str, spool: Spool) -> Self {
            Self {
                ring: Ring::new().unwrap(),
                desk: LaneDesk::new(files.named(name)),
                files,
                spool,
            }
        }

        fn submit(&mut self) {
            while let Some((ticket, order)) = self.spool.take_order() {
                self.desk.submit(&self.ring, ticket, order);
            }
        }

        /// Orders and hears until this holds.
        fn until(&mut self, mut done: impl FnMut(&mut Spool) -> bool) {
            let mut patience = 1_000;
            while !done(&mut self.spool) {
                self.spool.pump(Offset(0), |_, _| (0, 0));
                self.submit();
                if !self.desk.has_results() {
                    self.ring.wait(Duration::from_secs(10)).unwrap();
                }
                for (ticket, result) in self.desk.take_results() {
                    self.spool.done(ticket, result);
                }
                patience -= 1;
                assert!(patience > 0, "{:?}", self.spool.message());
            }
        }

        fn fill(&mut self, stream: &[u8]) {
            for (number, piece) in stream.chunks(1_000).enumerate() {
                let mut at = Offset(START + number as u64 * 1_000);
                let mut piece = piece;
                while !piece.is_empty() {
                    self.until(|spool| spool.space().is_some());
                    let space = self.spool.space().unwrap();
                    let count = space.len().min(piece.len());
                    space[..count].copy_from_slice(&piece[..count]);
                    self.spool.received(count, at, 0);
                    at = at.advanced(count);
                    piece = &piece[count..];
                }
            }
        }

        fn drain(&mut self) -> Vec<u8> {
            let mut out = Vec::new();
            while !self.spool.is_empty() {
                self.until(|spool| !spool.head().is_empty());
                let head = self.spool.head().to_vec();
                self.spool.take(head.len());
                out.extend(head);
            }
            out
        }

        /// The process ends, without warning but for its queue being done.
        fn end(mut self) {
            drop(self.desk);
            self.files.finish();
        }
    }

    fn fresh(path: &Path) -> Rig {
        let files = SpoolFiles::start(directory(path)).unwrap();
        let mut spool = Spool::new(settings());
        spool.set_id(ReplicationId::parse(&[b'a'; 40]).unwrap());
        Rig::new(files, "lane", spool)
    }

    fn stream(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at * 7 / 3) as u8).collect()
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn bytes_go_to_disk_and_come_back_and_leave_nothing() {
        let path = place("round");
        let mut rig = fresh(&path);
        assert!(!path.exists(), "made only when needed");
        let stream = stream(300_000);
        rig.fill(&stream);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert!(fs::read_dir(&path).unwrap().count() > 5);
        assert_eq!(rig.drain(), stream);
        let end = Offset(START + 300_000);
        rig.spool.acknowledge(end, end);
        assert!(!rig.spool.is_active());
        rig.submit();
        rig.end();
        let left: Vec<_> = fs::read_dir(&path).unwrap().collect();
        assert_eq!(left.len(), 1, "the lock: {left:?}");
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_process_that_starts_anew_finds_what_the_former_wrote() {
        let path = place("anew");
        let mut rig = fresh(&path);
        let stream = stream(300_000);
        rig.fill(&stream);
        rig.end();
        let files = SpoolFiles::start(directory(&path)).unwrap();
        let mut spools = files.survey(None).unwrap();
        let (name, segments) = spools.pop().expect("one");
        assert_eq!((name.as_str(), spools.len()), ("lane", 0));
        let recovered = recover(segments, Offset(START)).expect("all of it");
        let written = recovered.end().offset.0 - START;
        assert!(written > 200_000);
        // From the middle of a block on.
        let at = Offset(START + 12_345);
        let spool = Spool::resumed(settings(), &recovered, at);
        let mut rig = Rig::new(files, &name, spool);
        assert_eq!(rig.drain(), stream[12_345..written as usize]);
        rig.end();
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn what_nobody_goes_on_with_is_deleted_and_what_is_not_ours_is_left() {
        let path = place("others");
        let mut rig = fresh(&path);
        rig.fill(&stream(200_000));
        rig.end();
        let ours = names(&path).len();
        // A log that was rotated is named as segments are, and so are those of another link.
        fs::write(path.join("syslog.1"), "mine").unwrap();
        let another = Directory::new(Some(path.clone()), "another");
        let mut rig = Rig::new(
            SpoolFiles::start(another).unwrap(),
            "theirs",
            Spool::new(Settings {
                link: "another".into(),
                ..settings()
            }),
        );
        rig.spool.set_id(ReplicationId::parse(&[b'b'; 40]).unwrap());
        rig.fill(&stream(200_000));
        rig.end();
        let files = SpoolFiles::start(directory(&path)).unwrap();
        for (name, segments) in files.survey(None).unwrap() {
            assert_eq!((name.as_str(), segments.len()), ("lane", ours - 1));
            files.discard(&name, segments.iter().map(Survey::number));
        }
        assert_eq!(files.survey(None).unwrap(), []);
        let left = names(&path);
        assert_eq!(left.len(), 3 + ours - 1, "{left:?}");
        assert!(
            left.iter().all(|name| !name.starts_with("lane")),
            "{left:?}"
        );
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_directory_serves_one_process_at_a_time() {
        let path = place("lock");
        let mut one = directory(&path);
        one.take().unwrap();
        let refused = directory(&path).take().unwrap_err();
        assert!(refused.contains("--spool-dir"), "{refused}");
        assert!(directory(&path).spools(None).is_err());
        let mut another = Directory::new(Some(path.clone()), "another");
        another.take().expect("links do not meet");
        drop(one);
        directory(&path).take().unwrap();
        fs::remove_dir_all(path).unwrap();
        let homeless = Directory::new(None, LINK).take().unwrap_err();
        assert!(homeless.contains("HOME is not set"), "{homeless}");
    }

    #[test]
    fn a_disk_that_is_full_is_told_as_that() {
        let full = work(
            Path::new("/dev/full"),
            &Order::Write {
                segment: 0,
                at: 0,
                bytes: Arc::new(vec![1]),
            },
        );
        let told = told(&full.unwrap_err(), Path::new("/dev/full"));
        assert_eq!(told, "no space left for /dev/full");
    }
}
