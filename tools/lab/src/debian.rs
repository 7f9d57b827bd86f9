//! Brings servers of several Debian releases onto one machine, without installing anything.
//!
//! Each server is unpacked with every library it needs from its own release:
//!
//! ```text
//! <lab>/servers/redis-6.0/bin/redis-server   the packaged redis-check-rdb, which is the same program
//!                         bin/redis-cli, bin/redis-benchmark
//!                         lib/               ld-linux-*.so.2, libc.so.6, libssl.so.1.1, ...
//! ```
//!
//! `<lab>` is `$SLOTSTREAM_LAB_DIR`, or `slotstream-lab` in the user's cache directory.
//!
//! The work is apt's: it is given a private root with an empty package database, the release's sources
//! at the mirror that this machine itself uses, and Debian's keyring. So apt checks the signature of the
//! index, the checksum of every list and of every package, works through proxies as this machine's
//! settings say, and its resolver finds the closure of dependencies. `dpkg-deb` only extracts.
//!
//! A lock file keeps two processes from fetching at once; a server appears by one rename, whole or not.

use crate::Result;
use crate::version::{Family, Version};
use anyhow::{Context, bail};
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a family is found: lists of suites to try in order. A suite that only adds to another (backports)
/// stands behind the one it adds to. Releases move on: what sid holds today is in the next stable later.
fn suites(family: Family) -> &'static [&'static [&'static str]] {
    match family {
        Family::Redis60 => &[&["bullseye"]],
        Family::Redis70 => &[&["bookworm"]],
        Family::Redis80 => &[&["trixie"], &["forky"], &["sid"]],
        Family::Valkey80 => &[&["bookworm", "bookworm-backports"]],
        Family::Valkey81 => &[&["trixie"]],
        Family::Valkey9 => &[&["sid"], &["forky"]],
    }
}

/// The programs that the lab calls, with the Debian packages that hold them.
const PROGRAMS: [(&str, &str); 4] = [
    ("apt-get", "apt"),
    ("apt-cache", "apt"),
    ("dpkg-deb", "dpkg"),
    ("gpgv", "gpgv"),
];

const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// The directory that holds what is unpacked.
pub fn lab_directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("SLOTSTREAM_LAB_DIR") {
        return Ok(directory.into());
    }
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => {
            let home = std::env::var_os("HOME")
                .context("neither SLOTSTREAM_LAB_DIR nor XDG_CACHE_HOME nor HOME is set")?;
            Path::new(&home).join(".cache")
        }
    };
    Ok(cache.join("slotstream-lab"))
}

/// Every family with its unpacked server, or the reason why there is none.
pub fn unpack_all() -> Vec<(Family, Result<Version>)> {
    let mut fetcher = None;
    Family::ALL
        .into_iter()
        .map(|family| (family, unpack(family, &mut fetcher)))
        .collect()
}

/// The unpacked server of one family.
pub fn unpack_one(family: Family) -> Result<Version> {
    unpack(family, &mut None)
}

fn unpack(family: Family, fetcher: &mut Option<Fetcher>) -> Result<Version> {
    let home = lab_directory()?.join("servers").join(family.name());
    if !home.exists() {
        let fetcher = match fetcher {
            Some(fetcher) => fetcher,
            None => fetcher.insert(Fetcher::start()?),
        };
        // Another process may have brought it while this one waited for the lock.
        if !home.exists() {
            fetcher.fetch(family, &home)?;
        }
    }
    Version::unpacked(family, &home)
}

/// Holds the lock and a scratch directory with one private apt root for each list of suites.
struct Fetcher {
    scratch: PathBuf,
    mirrors: Vec<String>,
    keyring: &'static str,
    roots: HashMap<&'static [&'static str], Root>,
    _lock: File,
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        // What stays behind costs disk space, nothing else.
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

impl Fetcher {
    fn start() -> Result<Fetcher> {
        for (program, package) in PROGRAMS {
            if Command::new(program).arg("--version").output().is_err() {
                bail!("{program} is missing: apt-get install {package}");
            }
        }
        let keyring = KEYRINGS
            .into_iter()
            .find(|keyring| Path::new(keyring).exists())
            .context(
                "Debian's keys are missing in /usr/share/keyrings: \
                 apt-get install debian-archive-keyring",
            )?;
        let directory = lab_directory()?;
        fs::create_dir_all(directory.join("servers"))
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let lock = File::create(directory.join("lock"))?;
        lock.lock()?;
        let scratch = directory.join("scratch");
        if scratch.exists() {
            // Left by a process that was killed; the lock says that no other one is at work.
            fs::remove_dir_all(&scratch)?;
        }
        fs::create_dir_all(&scratch)?;
        Ok(Fetcher {
            mirrors: mirrors()?,
            keyring,
            scratch,
            roots: HashMap::new(),
            _lock: lock,
        })
    }

    fn fetch(&mut self, family: Family, home: &Path) -> Result<()> {
        let package = format!("{}-tools", family.product());
        let mut reasons = Vec::new();
        for suites in suites(family) {
            let fetched = self
                .root(suites)
                .and_then(|root| root.download(family, &package));
            match fetched {
                Ok(archives) => return self.install(family, &archives, home),
                Err(reason) => reasons.push(format!("{}: {reason:#}", suites.join("+"))),
            }
        }
        bail!("not fetched ({})", reasons.join("; "))
    }

    /// The apt root for these suites, with its lists up to date.
    fn root(&mut self, suites: &'static [&'static str]) -> Result<&Root> {
        if !self.roots.contains_key(suites) {
            let mut reasons = Vec::new();
            for (index, mirror) in self.mirrors.iter().enumerate() {
                let directory = self.scratch.join(format!("{}-{index}", suites.join("+")));
                match Root::create(directory, mirror, suites, self.keyring) {
                    Ok(root) => {
                        self.roots.insert(suites, root);
                        break;
                    }
                    Err(reason) => reasons.push(format!("{reason:#}")),
                }
            }
            if !self.roots.contains_key(suites) {
                bail!("{}", reasons.join("; "));
            }
        }
        Ok(&self.roots[suites])
    }

    /// Unpacks archives and moves what a server needs to `home`.
    fn install(&self, family: Family, archives: &[PathBuf], home: &Path) -> Result<()> {
        let tree = self.scratch.join(format!("{family}-tree"));
        for archive in archives {
            run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&tree))?;
        }
        let image = self.scratch.join(format!("{family}-image"));
        let (bin, lib) = (image.join("bin"), image.join("lib"));
        fs::create_dir_all(&bin)?;
        fs::create_dir_all(&lib)?;
        let product = family.product();
        for (packaged, name) in [
            ("check-rdb", "server"),
            ("cli", "cli"),
            ("benchmark", "benchmark"),
        ] {
            let packaged = tree.join("usr/bin").join(format!("{product}-{packaged}"));
            fs::copy(&packaged, bin.join(format!("{product}-{name}")))
                .with_context(|| format!("no {} in the package", packaged.display()))?;
        }
        for directory in library_directories(&tree)? {
            copy_libraries(&directory, &lib)?;
        }
        Version::unpacked(family, &image).context("it does not run after unpacking")?;
        fs::rename(&image, home)?;
        Ok(())
    }
}

/// Copies the shared libraries of one directory, links resolved, so that the result is flat.
fn copy_libraries(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        // Links that point out of the tree (to /etc/alternatives) are of no use here.
        if name.to_string_lossy().contains(".so") && path.is_file() {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// `lib*` and its subdirectory for the architecture, with and without `usr`: releases differ.
fn library_directories(tree: &Path) -> Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    for parent in [tree.to_path_buf(), tree.join("usr")] {
        for name in ["lib", "lib64"] {
            let directory = parent.join(name);
            if !directory.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&directory)? {
                let path = entry?.path();
                if path.is_dir() && path.to_string_lossy().ends_with("-linux-gnu") {
                    directories.push(path);
                }
            }
            directories.push(directory);
        }
    }
    Ok(directories)
}

/// An apt root of its own: it knows nothing of what is installed on the machine.
struct Root {
    directory: PathBuf,
}

impl Root {
    fn create(directory: PathBuf, mirror: &str, suites: &[&str], keyring: &str) -> Result<Root> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let sources: String = suites
            .iter()
            .map(|suite| {
                format!("deb [signed-by={keyring} targets=Packages] {mirror} {suite} main\n")
            })
            .collect();
        fs::write(directory.join("sources.list"), sources)?;
        fs::write(directory.join("status"), "")?;
        let path = directory.display();
        // The sandbox user could not write here; nothing but files of this directory is touched.
        let settings = format!(
            "Dir::State \"{path}\";\n\
             Dir::State::lists \"{path}/lists\";\n\
             Dir::State::status \"{path}/status\";\n\
             Dir::Cache \"{path}/cache\";\n\
             Dir::Etc::SourceList \"{path}/sources.list\";\n\
             Dir::Etc::SourceParts \"/dev/null\";\n\
             Dir::Etc::Preferences \"/dev/null\";\n\
             Dir::Etc::PreferencesParts \"/dev/null\";\n\
             APT::Sandbox::User \"\";\n\
             APT::Default-Release \"\";\n\
             APT::Update::Error-Mode \"any\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"2\";\n\
             Acquire::http::Timeout \"20\";\n\
             Acquire::https::Timeout \"20\";\n"
        );
        fs::write(directory.join("apt.conf"), settings)?;
        let root = Root { directory };
        run(root.apt("apt-get").args(["-qq", "update"]))?;
        Ok(root)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.directory.join("apt.conf"));
        command.env("LC_ALL", "C");
        command
    }

    /// Downloads `package` with the libraries it depends on, if it is of the family.
    fn download(&self, family: Family, package: &str) -> Result<Vec<PathBuf>> {
        let policy = run(self.apt("apt-cache").args(["policy", package]))?;
        let candidate = policy
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "))
            .with_context(|| format!("holds no {package}"))?;
        let number = candidate
            .split_once(':')
            .map_or(candidate, |(_, rest)| rest);
        if !family.includes(number) {
            bail!("holds {package} {candidate}, which is not {family}");
        }
        let plan = run(self.apt("apt-get").args([
            "-qq",
            "--no-install-recommends",
            "--print-uris",
            "install",
            package,
        ]))?;
        let wanted = plan
            .lines()
            .filter_map(package_name)
            .filter(|name| *name == package || name.starts_with("lib") || name.starts_with("lua-"));
        let archives = self.directory.join(family.name());
        fs::create_dir_all(&archives)?;
        run(self
            .apt("apt-get")
            .current_dir(&archives)
            .args(["-qq", "download"])
            .args(wanted))?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&archives)? {
            found.push(entry?.path());
        }
        Ok(found)
    }
}

/// The package of a line of apt's plan: `'<address>' libc6_2.36-9_amd64.deb 2755624 <checksum>`.
fn package_name(line: &str) -> Option<&str> {
    let file = line.split_whitespace().nth(1)?;
    Some(file.split_once('_')?.0)
}

/// The addresses of Debian archives in the machine's own settings, best first.
fn mirrors() -> Result<Vec<String>> {
    let targets = run(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(LABEL)|$(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    // The label is known once the lists have been fetched: before that every source is a candidate.
    let (labelled, unknown): (Vec<_>, Vec<_>) = targets
        .lines()
        .filter_map(|line| line.split_once('|'))
        .partition(|(label, _)| *label == "Debian");
    let unknown = unknown
        .into_iter()
        .filter(|(label, _)| label.is_empty() || label.starts_with("$("));
    let mut mirrors: Vec<String> = Vec::new();
    for (_, address) in labelled.into_iter().chain(unknown) {
        if !mirrors.iter().any(|known| known == address) {
            mirrors.push(address.to_owned());
        }
    }
    if mirrors.is_empty() {
        bail!("apt's sources on this machine name no Debian archive");
    }
    Ok(mirrors)
}

/// Runs a command to its end and returns what it printed; on failure what it complained about.
fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        // The first line is the cause, what follows is its consequences.
        bail!(
            "{} failed: {}",
            command.get_program().to_string_lossy(),
            complaint.lines().next().unwrap_or_default().trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_package_is_read_from_a_line_of_the_plan() {
        assert_eq!(
            package_name("'mirror/pool/libc6_2.36-9_amd64.deb' libc6_2.36-9_amd64.deb 27 SHA256:0"),
            Some("libc6")
        );
        assert_eq!(package_name("Reading package lists..."), None);
    }
}
