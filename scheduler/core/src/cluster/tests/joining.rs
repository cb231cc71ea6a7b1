//! Tokens and connections.

use super::*;
use crate::authorize::Role;

fn create(fleet: &mut Fleet, grants: TokenGrant, seconds: u64) -> Vec<Action> {
    let (ticket, secret_hash) = (Ticket(1), ContentHash([5; 32]));
    fleet.event(Event::TokenCreated { ticket, secret_hash, grants, valid: Span::from_seconds(seconds) })
}

fn present(fleet: &mut Fleet, byte: u8) -> Vec<Action> {
    let (ticket, secret_hash) = (Ticket(2), ContentHash([byte; 32]));
    fleet.event(Event::TokenPresented { ticket, secret_hash, name: "machine".into() })
}

#[test]
fn token_admits_once() {
    let mut fleet = Fleet::new();
    let grants = TokenGrant::User { name: "ada".into(), role: Role::Submitter };
    create(&mut fleet, grants, 60);
    let admit = Action::Admit {
        ticket: Ticket(2),
        grants: AdmitAs::User { name: "ada".into(), role: Role::Submitter },
    };
    assert_eq!(present(&mut fleet, 5), [admit]);
    let refusal = refusal(&present(&mut fleet, 5));
    assert_eq!((refusal.kind, refusal.message.as_str()), (RefusalKind::Denied, "the token was used before"));
    assert!(refusal.hint.unwrap().contains("ctl token create"));
}

#[test]
fn token_expires_and_unknown_ones_are_refused() {
    let mut fleet = Fleet::new();
    create(&mut fleet, TokenGrant::Node, 60);
    fleet.now = fleet.now.after(Span::from_seconds(60));
    assert_eq!(refusal(&present(&mut fleet, 5)).message, "the token has expired");
    fleet.event(Event::Tick);
    assert_eq!(refusal(&present(&mut fleet, 5)).message, "the token is not known here, or has expired");
    assert_eq!(refusal(&present(&mut fleet, 6)).kind, RefusalKind::Denied);
    assert_eq!(fleet.journal.last().unwrap().name(), "TokenExpired");
}

#[test]
fn token_needs_a_sensible_span_and_name() {
    let mut fleet = Fleet::new();
    for seconds in [0, 7 * 86_400 + 1] {
        assert_eq!(refusal(&create(&mut fleet, TokenGrant::Node, seconds)).kind, RefusalKind::Usage);
    }
    for name in ["", "a b", "../x", "ada?role=admin"] {
        let grants = TokenGrant::User { name: name.into(), role: Role::Viewer };
        assert_eq!(refusal(&create(&mut fleet, grants, 60)).kind, RefusalKind::Usage, "{name}");
    }
}

#[test]
fn token_survives_a_restart_and_stays_used() {
    let mut fleet = Fleet::new();
    create(&mut fleet, TokenGrant::Node, 600);
    fleet.restart();
    assert!(matches!(present(&mut fleet, 5)[..], [Action::Admit { .. }]));
    fleet.restart();
    assert_eq!(refusal(&present(&mut fleet, 5)).message, "the token was used before");
}

#[test]
fn unknown_node_is_sent_away() {
    let mut fleet = Fleet::new();
    let actions = fleet.event(Event::AgentConnected { node: NodeId(7) });
    assert!(matches!(actions[1], Action::Disconnect { node: NodeId(7), .. }), "{actions:?}");
    let message = FromAgent::Beat { attempts: vec![] };
    assert!(fleet.say(NodeId(7), message).is_empty());
}

#[test]
fn first_word_of_a_connection_is_a_report() {
    let mut fleet = Fleet::new();
    let node = fleet.join();
    fleet.event(Event::AgentConnected { node });
    let actions = fleet.say(node, FromAgent::Beat { attempts: vec![] });
    assert!(matches!(actions[..], [Action::Disconnect { .. }]));
    let actions = fleet.report(node, 4, &[]);
    assert!(matches!(actions[0], Action::SendAgent { message: ToAgent::Welcome { .. }, .. }));
}

#[test]
fn beats_and_repeated_reports_leave_no_trace_in_the_journal() {
    let mut fleet = Fleet::of(&[4]);
    let (_, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    let run = fleet.run(&start, node);
    // By then the token of the node has expired, which is a change.
    fleet.wait_beating(61, &[(node, vec![run.clone()])]);
    let before = fleet.journal.len();
    fleet.wait_beating(100, &[(node, vec![run.clone()])]);
    fleet.report(node, 4, &[run]);
    assert_eq!(fleet.journal.len(), before);
    fleet.report(node, 5, &[]);
    assert!(fleet.journal[before..].iter().any(|change| change.name() == "NodeReported"));
}

#[test]
fn certificate_renewal_is_passed_on() {
    let mut fleet = Fleet::of(&[4]);
    let (node, certificate_request) = (NodeId(1), vec![1, 2, 3]);
    let said = FromAgent::RenewCertificate { certificate_request: certificate_request.clone() };
    assert_eq!(fleet.say(node, said), [Action::RenewCertificate { node, certificate_request }]);
}
