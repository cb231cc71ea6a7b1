//! Progress of a job: a bar on a terminal, plain lines otherwise. Always on stderr.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use motley_scheduler_core::wire::agent::Progress;

use super::Output;
use super::view::{progress_figures, progress_line};

/// Plain lines come at most so often, so that a log file of a long job stays readable.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Shows where a job stands, and lets log lines pass above it.
#[derive(Debug)]
pub enum ProgressDisplay {
    Bar { bar: ProgressBar, activity: String },
    Plain { activity: String, last: Option<Instant>, shown: String },
    Silent,
}

impl ProgressDisplay {
    pub fn new(output: &Output) -> Self {
        match (output.json, output.terminal) {
            (true, _) => ProgressDisplay::Silent,
            (false, true) => {
                let bar = ProgressBar::new_spinner();
                bar.enable_steady_tick(Duration::from_millis(200));
                ProgressDisplay::Bar { bar, activity: String::new() }
            }
            (false, false) => {
                ProgressDisplay::Plain { activity: String::new(), last: None, shown: String::new() }
            }
        }
    }

    /// The job is here now.
    pub fn update(&mut self, progress: &Progress) {
        match self {
            ProgressDisplay::Bar { bar, activity } => {
                if *activity != progress.activity {
                    activity.clone_from(&progress.activity);
                    bar.reset();
                    bar.set_style(style(progress));
                }
                bar.set_prefix(progress.activity.clone());
                if let Some(total) = progress.total {
                    bar.set_length(total);
                }
                bar.set_position(progress.done);
                bar.set_message(progress_figures(progress).join(", "));
            }
            ProgressDisplay::Plain { activity, last, shown } => {
                let new_activity = *activity != progress.activity;
                let due = last.is_none_or(|at| at.elapsed() >= PLAIN_INTERVAL);
                let line = progress_line(progress);
                if (new_activity || due) && *shown != line {
                    eprintln!("{line}");
                    activity.clone_from(&progress.activity);
                    *last = Some(Instant::now());
                    *shown = line;
                }
            }
            ProgressDisplay::Silent => {}
        }
    }

    /// Text without figures, such as why a job waits.
    pub fn say(&mut self, text: &str) {
        self.update(&Progress { activity: text.to_owned(), ..Progress::default() });
    }

    /// Log bytes pass above the bar.
    pub fn log(&mut self, bytes: &[u8]) {
        let write = || {
            let mut stderr = std::io::stderr().lock();
            let _nobody_reads = stderr.write_all(bytes).and_then(|()| stderr.flush());
        };
        match self {
            ProgressDisplay::Bar { bar, .. } => bar.suspend(write),
            ProgressDisplay::Plain { .. } => write(),
            ProgressDisplay::Silent => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let ProgressDisplay::Bar { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}

fn style(progress: &Progress) -> ProgressStyle {
    let template = match (progress.total, progress.unit.as_str()) {
        (None, _) => "{spinner} {prefix} {msg}",
        (Some(_), "byte") => "{spinner} {prefix} [{bar:30}] {bytes}/{total_bytes} {msg}",
        (Some(_), _) => "{spinner} {prefix} [{bar:30}] {pos}/{len} {msg}",
    };
    let style = ProgressStyle::with_template(template).expect("the three templates above are valid");
    style.progress_chars("=> ")
}
