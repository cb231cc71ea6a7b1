//! The reference documents are what the program says: `docs/ctl.md` is rendered from the command tree, the tables of
//! `docs/job-documents.md` from the list of keys. `MOTLEY_BLESS=1 cargo test ... documents` writes them anew.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command};
use motley_scheduler_core::document::keys::{Absent, KEYS};
use motley_tests::repository;

const INTRODUCTION: &str = "# ctl\n\n\
<!-- Rendered from the command tree by tests/anywhere/documents.rs; MOTLEY_BLESS=1 writes it anew. -->\n\n\
One program for users, schedulers and nodes. stdout is data, stderr is talk; `--json` prints JSON with a stable\n\
schema: keys are only added, times are milliseconds since the Unix epoch, sizes bytes, what is not known is null.\n\n\
| exit code | meaning |\n|---|---|\n\
| 0 | ok |\n| 1 | the job failed or was cancelled, or a local command could not do its work |\n\
| 2 | the command line or the job document cannot be used as it stands |\n\
| 3 | no such job, artifact or file |\n| 4 | no certificate, or it does not allow this |\n\
| 5 | the scheduler does not answer |\n| 130, 143 | ended by SIGINT (Ctrl-C), by SIGTERM |\n\n\
Errors are a line `error: ...` and, where there is a remedy, lines `hint: ...` on stderr.\n\n\
`ctl scheduler` makes its certificate authority at its first start and writes an admin identity for the local user;\n\
`ctl` finds it by `--identity`, `MOTLEY_IDENTITY` or its default place. `MOTLEY_LOG` filters log lines\n\
(`MOTLEY_LOG=debug`).\n";

#[test]
fn the_reference_of_commands_is_the_command_tree() {
    let mut tree = motley_agent_ctl::command_tree();
    tree.build();
    let mut text = INTRODUCTION.to_owned();
    text.push_str("\n## Options of every command\n\n");
    for argument in tree.get_arguments().filter(|argument| argument.is_global_set()) {
        text.push_str(&option_line(argument));
    }
    for command in tree.get_subcommands() {
        render(command, "ctl", &mut text);
    }
    compare("docs/ctl.md", &text);
}

fn render(command: &Command, above: &str, text: &mut String) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{above} {}", command.get_name());
    let about = command.get_about().unwrap_or_else(|| panic!("`{name}` says in one line what it does"));
    if command.has_subcommands() {
        command.get_subcommands().for_each(|command| render(command, &name, text));
        return;
    }
    writeln!(text, "\n## {name}\n\n{about}\n").expect("a string takes text");
    let examples = command.get_after_help().unwrap_or_else(|| panic!("`{name}` has an example in its help"));
    let examples = examples.to_string();
    let lines = examples.lines().filter(|line| line.starts_with("  ctl")).map(str::trim);
    let lines: Vec<&str> = lines.collect();
    assert!(lines.iter().all(|line| line.starts_with(&name)) && !lines.is_empty(), "examples of `{name}`");
    writeln!(text, "```sh\n{}\n```\n", lines.join("\n")).expect("a string takes text");
    for argument in command.get_arguments().filter(|argument| !argument.is_global_set()) {
        if !argument.is_hide_set() && !matches!(argument.get_id().as_str(), "help" | "version") {
            text.push_str(&option_line(argument));
        }
    }
}

fn option_line(argument: &Arg) -> String {
    let help = argument.get_help().unwrap_or_else(|| panic!("`{}` has a line of help", argument.get_id()));
    let values = argument.get_value_names().unwrap_or_default().iter().map(ToString::to_string);
    let value = match argument.get_action() {
        ArgAction::Set | ArgAction::Append => values.collect::<Vec<_>>().join(" "),
        _ => String::new(),
    };
    let long = argument.get_long().map(|long| format!("--{long}"));
    let short = argument.get_short().map(|short| format!("-{short}"));
    let names: Vec<String> = [long, short].into_iter().flatten().collect();
    let head = match names.is_empty() {
        true => value,
        false => format!("{} {value}", names.join(", ")).trim_end().to_owned(),
    };
    let choices: Vec<String> =
        argument.get_possible_values().iter().map(|choice| choice.get_name().to_owned()).collect();
    let choices = match choices.is_empty() || !argument.get_action().takes_values() {
        true => String::new(),
        false => format!(" One of {}.", choices.join(", ")),
    };
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let default = match defaults.is_empty() || !argument.get_action().takes_values() {
        true => String::new(),
        false => format!(" Default: {}.", defaults.join(", ")),
    };
    format!("- `{head}`: {help}{choices}{default}\n")
}

#[test]
fn every_key_of_job_documents_is_documented_as_it_is_parsed() {
    let path = "docs/job-documents.md";
    let text = std::fs::read_to_string(repository().join(path)).unwrap_or_default();
    let (begin, end) = ("<!-- keys -->\n", "<!-- end of keys -->");
    let (Some(from), Some(to)) = (text.find(begin), text.find(end)) else {
        panic!("{path} has no place `<!-- keys -->` to `<!-- end of keys -->`")
    };
    let mut tables = String::new();
    let mut table = None;
    for key in KEYS {
        if table != Some(key.table()) {
            table = Some(key.table());
            let title = match key.table() {
                None => "The document itself".to_owned(),
                Some(array) if array.ends_with("[]") => format!("`[[{}]]`", array.trim_end_matches("[]")),
                Some(table) => format!("`[{table}]`"),
            };
            let head = "| key | in | allowed | if absent | meaning |\n|---|---|---|---|---|";
            writeln!(tables, "\n### {title}\n\n{head}").expect("a string takes text");
        }
        let name = key.name.rsplit('.').next().unwrap_or(key.name);
        let absent = match key.absent {
            Absent::Required(_) => "required".to_owned(),
            Absent::Value(value) => format!("`{value}`"),
            Absent::Means(words) => words.to_owned(),
        };
        let kinds = if key.kinds.len() == 3 { "all".to_owned() } else { key.kinds.join(", ") };
        writeln!(tables, "| `{name}` | {kinds} | {} | {absent} | {} |", key.range, key.meaning)
            .expect("a string takes text");
    }
    compare(path, &format!("{}{tables}\n{}", &text[..from + begin.len()], &text[to..]));
}

fn compare(path: &str, expected: &str) {
    let file = repository().join(path);
    if std::env::var_os("MOTLEY_BLESS").is_some() {
        std::fs::write(&file, expected).expect("documentation can be written");
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    if found != expected {
        panic!(
            "{path} is not what the program says; MOTLEY_BLESS=1 writes it anew.\nfirst difference: {differs:#?}"
        );
    }
}
