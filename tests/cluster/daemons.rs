//! How the two daemons are started: what they refuse, what they say, and what they leave alone.

use motley_tests::fleet::Fleet;
use motley_tests::process::wait_for;
use serde_json::Value;

use crate::CTL;

#[test]
fn a_scheduler_keeps_the_identity_of_another_fleet() {
    let fleet = Fleet::start(CTL);
    let before = std::fs::read(fleet.path("identity/certificate.pem")).unwrap();
    let mut second = fleet
        .ctl("scheduler --json --listen 127.0.0.1:0 --state")
        .arg(fleet.path("second"))
        .start(&fleet.path("second.log"));
    let line: Value = serde_json::from_str(&second.line()).unwrap();
    assert_eq!(std::fs::read(fleet.path("identity/certificate.pem")).unwrap(), before);
    fleet.ctl("jobs").end().expect(0);
    let said = second.stderr_text();
    for word in ["warning:", "another identity, which is kept", "hint: `ctl --identity"] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    let identity = line["identity"].as_str().unwrap();
    assert_eq!(identity, fleet.path("second/admin").to_str().unwrap());
    fleet.anybody("jobs --identity").arg(identity).end().expect(0);
    second.kill();
}

#[test]
fn clocks_are_options_and_have_to_fit_each_other() {
    let fleet = Fleet::start(CTL);
    for (options, word) in [
        ("--beat 10s", "beat every 10s"),
        ("--suspect-after 40s", "suspect after 40s"),
        ("--lost-after 5s", "lost after 5s"),
        ("--beat 1ms", "1ms"),
    ] {
        let refused = fleet.anybody("scheduler --listen 127.0.0.1:0 --state").arg(fleet.path("refused"));
        refused.args(options).end().expect(2).says(&["error:", word, "hint:"]);
    }
    fleet.anybody("scheduler --beat 5").end().expect(2).says(&["duration with its unit"]);
    assert!(!fleet.path("refused").exists());

    let mut quick =
        Fleet::start_with(CTL, "--beat 100ms --suspect-after 1s --lost-after 1h --keep-running 1s");
    let mut agent = quick.start_agent("node-a");
    agent.kill();
    wait_for("suspicion", || {
        let nodes = quick.ctl("nodes --json").end().expect(0).json();
        (nodes["nodes"][0]["state"] == "suspect").then_some(())
    });
    quick.kill_scheduler();
}

#[test]
fn what_is_advertised_is_what_a_token_is_used_with() {
    let fleet = Fleet::start_with(CTL, "--advertise fleet.example.org:7000");
    let made = fleet.ctl("token create --json").end().expect(0);
    assert_eq!(made.json()["scheduler"], "fleet.example.org:7000");
    made.says(&["ctl agent --scheduler fleet.example.org:7000 --token"]);
    let plain = Fleet::start(CTL);
    let address = plain.address();
    let user = plain.ctl("token create --user anna --role viewer").end().expect(0);
    user.says(&[&format!("ctl login --scheduler {address} --token")]);
}
