//! The rules of the house that a compiler does not check.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by layer; those of one layer below 4 do not import each other, except within layer 0 and 1.
const LAYERS: &[(&str, u8)] = &[
    ("limits", 0),
    ("position", 0),
    ("slot", 0),
    ("fault", 0),
    ("chunk", 0),
    ("resp", 1),
    ("rdb", 1),
    ("command", 1),
    ("topology", 2),
    ("source", 2),
    ("target", 2),
    ("spool", 2),
    ("checkpoint", 2),
    ("mend", 2),
    ("engine", 3),
    ("runtime", 4),
    ("control", 4),
    ("cli", 5),
];

/// What the pure layers must not name: sockets, files, clocks, threads, randomness.
const IMPURE: &[&str] = &[
    "std::net",
    "std::fs",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "std::process",
    "rand::",
    "tokio",
    "io_uring",
    "rustix",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files under `directory`, with their text.
fn rust_files(directory: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("readable");
            open.extend(entries.map(|entry| entry.expect("readable").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("readable");
            files.push((path, text));
        }
    }
    files
}

/// The module of `src` that a file belongs to; `None` for `lib.rs` and `main.rs`.
fn module_of(path: &Path) -> Option<String> {
    let path = path.strip_prefix(root().join("src")).ok()?;
    let first = path.iter().next()?.to_str()?.trim_end_matches(".rs");
    (!["lib", "main"].contains(&first)).then(|| first.to_owned())
}

fn layer_of(module: &str) -> u8 {
    LAYERS
        .iter()
        .find(|(name, _)| *name == module)
        .unwrap_or_else(|| panic!("module {module} has no layer: add it to LAYERS"))
        .1
}

/// Code without its comments, so that documentation may name anything.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(number, line)| (number + 1, line))
}

#[test]
fn a_module_imports_only_lower_layers() {
    let mut wrong = Vec::new();
    for (path, text) in rust_files("src") {
        let Some(module) = module_of(&path) else {
            continue;
        };
        let layer = layer_of(&module);
        for (number, line) in code(&text) {
            for (other, other_layer) in LAYERS {
                let names = line.contains(&format!("crate::{other}::"))
                    || line.contains(&format!("crate::{other};"));
                let sibling = *other_layer == layer && layer == 2;
                if names && *other != module && (*other_layer > layer || sibling) {
                    wrong.push(format!(
                        "{}:{number}: {module} imports {other}",
                        path.display()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_pure_layers_name_no_socket_file_clock_or_thread() {
    let mut wrong = Vec::new();
    for (path, text) in rust_files("src") {
        let pure = module_of(&path).is_some_and(|module| layer_of(&module) < 4);
        for (number, line) in code(&text).filter(|_| pure) {
            for name in IMPURE.iter().filter(|name| line.contains(**name)) {
                wrong.push(format!("{}:{number}: {name}", path.display()));
            }
        }
    }
    // Tests inside `shared` need a moment to start from.
    wrong.retain(|line| !(line.contains("engine/shared.rs") && line.ends_with("Instant::now")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_runtime_names_io_uring() {
    for (path, text) in rust_files("src") {
        let allowed = module_of(&path).is_some_and(|module| module == "runtime");
        for (number, line) in code(&text) {
            assert!(
                allowed || !line.contains("io_uring::"),
                "{}:{number} names io_uring",
                path.display()
            );
        }
    }
}

#[test]
fn files_stay_under_a_thousand_lines() {
    for directory in ["src", "tests", "tools", "benches", "perf"] {
        if !root().join(directory).exists() {
            continue;
        }
        for (path, text) in rust_files(directory) {
            let lines = text.lines().count();
            assert!(
                lines <= 1000,
                "{} has {lines} lines: split it",
                path.display()
            );
        }
    }
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    for (path, text) in rust_files("src") {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in code(&text) {
            if line.contains("unsafe {") || line.contains("unsafe fn") {
                let before = &lines[number.saturating_sub(6)..number - 1];
                assert!(
                    before.iter().any(|line| line.contains("SAFETY:")),
                    "{}:{number}: no SAFETY comment",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn the_top_level_holds_what_it_should() {
    let known = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "src",
        "benches",
        "perf",
        "tests",
        "tools",
        "target",
    ];
    for entry in fs::read_dir(root()).expect("readable") {
        let name = entry.expect("readable").file_name();
        let name = name.to_string_lossy();
        assert!(
            name.starts_with('.') || known.contains(&&*name),
            "{name} does not belong to the top level"
        );
    }
}
