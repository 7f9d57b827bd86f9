//! How far reading has come: a line on standard error, on a terminal only.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Draws a few times a second at most.
pub struct Progress {
    bar: Option<ProgressBar>,
}

const TEMPLATES: [&str; 2] = [
    "{spinner} {bytes} read, {msg}, {bytes_per_sec}",
    "{wide_bar} {bytes}/{total_bytes}, {msg}, {bytes_per_sec}, {eta} left",
];

impl Progress {
    /// `prints`: standard output is written to all the while; if that is a terminal too, the line would only disturb.
    pub fn new(total_bytes: Option<u64>, prints: bool) -> Self {
        if !std::io::stderr().is_terminal() || prints && std::io::stdout().is_terminal() {
            return Self { bar: None };
        }
        let bar = match total_bytes {
            None => ProgressBar::no_length(),
            Some(total) => ProgressBar::new(total),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        let template = TEMPLATES[usize::from(total_bytes.is_some())];
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar: Some(bar) }
    }

    pub fn show(&mut self, bytes: u64, keys: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
            bar.set_message(format!("{} keys", HumanCount(keys)));
        }
    }

    /// Takes the line off the terminal.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_parses() {
        for template in TEMPLATES {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
