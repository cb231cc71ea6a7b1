//! The workload of a fake runner: one command a line, in the place of the job document.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use motley_scheduler_core::failure::FailureReason;

use crate::failure::Failure;
use crate::runner::shell::{Finish, Shell};

pub(super) fn follow(shell: Shell) -> Result<Finish, Failure> {
    let failed = |error: std::io::Error| Failure::new(FailureReason::Infra, error);
    for line in shell.spec.assignment.document.lines() {
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "log" => shell.reporter.log(argument),
            "lines" => (0..argument.parse().unwrap()).for_each(|number: u64| {
                shell.reporter.log(&format!("line {number:06}"));
                if number.is_multiple_of(100) {
                    sleep(Duration::from_millis(10));
                }
            }),
            "checkpoint" => {
                let partial = shell.folders.checkpoints.join(".partial-step");
                fs::create_dir_all(&partial).map_err(failed)?;
                fs::write(partial.join("weights.bin"), format!("weights of {argument}")).map_err(failed)?;
                fs::rename(&partial, shell.folders.checkpoints.join(format!("step-{argument}")))
                    .map_err(failed)?;
                shell.reporter.checkpoint(argument.parse().unwrap());
            }
            "partial" => {
                let partial = shell.folders.checkpoints.join(format!(".partial-step-{argument}"));
                fs::create_dir_all(&partial).map_err(failed)?;
                fs::write(partial.join("weights.bin"), "half of them").map_err(failed)?;
            }
            "copy" => {
                let (from, to) = argument.split_once(' ').unwrap();
                let root = shell.folders.input.parent().unwrap();
                fs::copy(root.join(from), shell.folders.output.join(to)).map_err(failed)?;
            }
            "output" => fs::write(shell.folders.output.join(argument), argument).map_err(failed)?,
            "endpoint" => shell.reporter.endpoint(argument.into()),
            "sleep" => sleep(Duration::from_millis(argument.parse().unwrap())),
            "wait" => {
                while !shell.stop.is_set() {
                    sleep(Duration::from_millis(5));
                }
                return Ok(Finish::Stopped);
            }
            "ignore" => sleep(Duration::from_secs(600)),
            "panic" => panic!("{argument}"),
            "fail" => return Err(Failure::new(FailureReason::DataError, argument)),
            other => panic!("no command {other}"),
        }
    }
    Ok(Finish::Done)
}
