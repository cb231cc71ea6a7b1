//! Agents, nodes and the scheduler itself go away and come back.

use super::*;

fn state_of(fleet: &Fleet, node: NodeId) -> NodeState {
    fleet.cluster.nodes().into_iter().find(|view| view.node == node).unwrap().state
}

#[test]
fn silent_node_is_suspect_then_lost_and_its_job_moves() {
    let mut fleet = Fleet::of(&[4, 4]);
    fleet.wait_beating(60, &[(NodeId(1), vec![]), (NodeId(2), vec![])]);
    let (job, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    let run = fleet.run(&start, node);
    let others = [(NodeId(2), vec![])];
    fleet.wait_beating(15, &others);
    assert_eq!(state_of(&fleet, node), NodeState::Suspect);
    assert_eq!(fleet.view(job).state, JobState::Running);
    let actions = fleet.wait_beating(17, &others);
    assert_eq!(state_of(&fleet, node), NodeState::Lost);
    assert!(actions.iter().any(|action| matches!(action, Action::Disconnect { node: NodeId(1), .. })));
    let (other, again) = one_start(&actions);
    assert_eq!((other, again.attempt.number), (NodeId(2), 2));
    assert_eq!(fleet.view(job).attempts[0].reason, Some(FailureReason::NodeLost));
    // Back again: its attempt is fenced off, and what it says of the end is not believed.
    let actions = fleet.report(node, 4, &[run]);
    let stale = ToAgent::Stale { attempt: start.attempt, epoch: start.epoch };
    assert!(told(&actions, node, &stale), "{actions:?}");
    assert_eq!(state_of(&fleet, node), NodeState::Ready);
    let actions = fleet.end(node, &start, Outcome::Succeeded);
    let stale = ToAgent::Stale { attempt: start.attempt, epoch: start.epoch };
    assert!(told(&actions, node, &stale), "{actions:?}");
    assert!(told(&actions, node, &ToAgent::EndRecorded { attempt: start.attempt, epoch: start.epoch }));
    assert_eq!(fleet.view(job).state, JobState::Placing);
}

#[test]
fn suspect_node_gets_no_new_work_until_it_beats() {
    let mut fleet = Fleet::of(&[4]);
    fleet.wait(15);
    let (_, actions) = fleet.submit();
    assert!(starts(&actions).is_empty());
    let actions = fleet.say(NodeId(1), FromAgent::Beat { attempts: vec![] });
    assert_eq!(one_start(&actions).0, NodeId(1));
}

#[test]
fn disconnected_node_gets_no_new_work_until_it_reports() {
    let mut fleet = Fleet::of(&[4]);
    fleet.event(Event::AgentDisconnected { node: NodeId(1) });
    let (_, actions) = fleet.submit();
    assert!(starts(&actions).is_empty());
    assert!(starts(&fleet.event(Event::AgentConnected { node: NodeId(1) })).is_empty());
    assert_eq!(one_start(&fleet.report(NodeId(1), 4, &[])).0, NodeId(1));
}

#[test]
fn restarted_agent_that_kept_its_runner_goes_on() {
    let mut fleet = Fleet::of(&[4]);
    let (job, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    let run = fleet.run(&start, node);
    fleet.event(Event::AgentDisconnected { node });
    fleet.wait(10);
    let before = fleet.journal.len();
    let actions = fleet.report(node, 4, &[run]);
    assert!(
        actions.iter().any(|action| {
            matches!(action, Action::SendAgent { message: ToAgent::LeaseRenewed { .. }, .. })
        })
    );
    assert!(starts(&actions).is_empty());
    assert_eq!((fleet.journal.len(), fleet.view(job).state), (before, JobState::Running));
}

#[test]
fn restarted_agent_that_lost_its_runner_gets_a_new_attempt() {
    let mut fleet = Fleet::of(&[4]);
    let (job, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    fleet.run(&start, node);
    fleet.event(Event::AgentDisconnected { node });
    fleet.report(node, 4, &[]);
    assert_eq!(fleet.view(job).attempts[0].reason, Some(FailureReason::RunnerLost));
    assert_eq!(one_start(&fleet.wait(1)).1.attempt.number, 2);
}

#[test]
fn start_that_was_lost_on_the_way_is_said_again() {
    let mut fleet = Fleet::of(&[4]);
    let (_, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    fleet.event(Event::AgentDisconnected { node });
    let (_, again) = one_start(&fleet.report(node, 4, &[]));
    assert_eq!(again, start);
    // And when the agent never takes it up, another attempt follows.
    let actions = fleet.wait_beating(33, &[(node, vec![])]);
    let stale = ToAgent::Stale { attempt: start.attempt, epoch: start.epoch };
    assert!(told(&actions, node, &stale), "{actions:?}");
    assert_eq!(one_start(&actions).1.attempt.number, 2);
}

#[test]
fn cancelled_job_of_a_lost_runner_or_node_is_cancelled() {
    for lose_node in [false, true] {
        let mut fleet = Fleet::of(&[4]);
        let (job, actions) = fleet.submit();
        let (node, start) = one_start(&actions);
        fleet.run(&start, node);
        fleet.event(Event::AgentDisconnected { node });
        let actions = fleet.cancel(job);
        assert!(!actions.iter().any(|action| matches!(action, Action::SendAgent { .. })), "{actions:?}");
        if lose_node {
            fleet.wait(61);
        } else {
            fleet.report(node, 4, &[]);
        }
        assert_eq!(fleet.view(job).state, JobState::Cancelled);
    }
}

#[test]
fn restarted_scheduler_waits_for_its_nodes() {
    let mut fleet = Fleet::of(&[4, 4]);
    let (job, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    let run = fleet.run(&start, node);
    let (waiting, _) = fleet.submit();
    assert_eq!(fleet.view(waiting).state, JobState::Placing);
    fleet.restart();
    assert_eq!(fleet.view(job).state, JobState::Running);
    fleet.wait(59);
    assert_eq!(state_of(&fleet, node), NodeState::Suspect);
    let actions = fleet.report(node, 4, &[run]);
    assert!(starts(&actions).is_empty());
    assert_eq!((state_of(&fleet, node), fleet.view(job).state), (NodeState::Ready, JobState::Running));
    fleet.end(node, &start, Outcome::Succeeded);
    assert_eq!(fleet.view(job).state, JobState::Succeeded);
    // The other node never came back.
    assert_eq!(fleet.view(waiting).state, JobState::Placing);
    let actions = fleet.wait_beating(4, &[(node, vec![])]);
    assert_eq!(state_of(&fleet, NodeId(2)), NodeState::Lost);
    assert_eq!(fleet.view(waiting).attempts[0].reason, Some(FailureReason::NodeLost));
    assert_eq!(one_start(&actions).0, node);
}

#[test]
fn restarted_scheduler_places_jobs_that_were_waiting() {
    let mut fleet = Fleet::new();
    let node = fleet.join();
    let (job, _) = fleet.submit();
    fleet.restart();
    let (placed, start) = one_start(&fleet.report(node, 4, &[]));
    assert_eq!((placed, start.attempt.job), (node, job));
    // Epochs and numbers go on where they were.
    fleet.restart();
    fleet.report(node, 4, &[report(&start, AttemptPhase::Leased)]);
    let (next, _) = fleet.submit();
    assert_eq!(next, JobId(2));
    let actions = fleet.end(node, &start, Outcome::Succeeded);
    assert_eq!(one_start(&actions).1.epoch, Epoch(2));
}

#[test]
fn scheduler_that_slept_blames_nobody() {
    let mut fleet = Fleet::of(&[4]);
    let (job, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    let run = fleet.run(&start, node);
    fleet.wait_beating(100, &[(node, vec![run.clone()])]);
    // A laptop's lid was closed for an hour.
    fleet.now = fleet.now.after(Span::from_seconds(3600));
    fleet.event(Event::Tick);
    assert_eq!(fleet.view(job).state, JobState::Running);
    fleet.wait_beating(100, &[(node, vec![run])]);
    assert_eq!(fleet.view(job).attempts.len(), 1);
    // And a node that does not come back after it is lost in the end.
    fleet.now = fleet.now.after(Span::from_seconds(3600));
    fleet.event(Event::Tick);
    fleet.wait(61);
    assert_eq!(state_of(&fleet, node), NodeState::Lost);
}

#[test]
fn node_that_comes_back_in_time_goes_on_with_its_attempt() {
    let mut fleet = Fleet::of(&[4, 3]);
    fleet.wait_beating(60, &[(NodeId(1), vec![]), (NodeId(2), vec![])]);
    let (job, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    let run = fleet.run(&start, node);
    // The other node has too little memory, so the job waits.
    fleet.wait_beating(100, &[(NodeId(2), vec![])]);
    assert_eq!(fleet.view(job).state, JobState::Queued);
    let actions = fleet.report(node, 4, &[run]);
    let lease = Span::from_seconds(30);
    let renewed = ToAgent::LeaseRenewed { attempts: vec![(start.attempt, start.epoch)], lease };
    assert!(told(&actions, node, &renewed), "{actions:?}");
    let view = fleet.view(job);
    assert_eq!((view.state, view.attempts.len(), view.attempts[0].reason), (JobState::Running, 1, None));
    fleet.end(node, &start, Outcome::Succeeded);
    assert_eq!(fleet.view(job).state, JobState::Succeeded);
}

#[test]
fn cancelled_job_of_a_lost_node_is_not_revived() {
    let mut fleet = Fleet::of(&[4]);
    let (job, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    let run = fleet.run(&start, node);
    fleet.wait(100);
    fleet.cancel(job);
    let actions = fleet.report(node, 4, &[run]);
    let stale = ToAgent::Stale { attempt: start.attempt, epoch: start.epoch };
    assert!(told(&actions, node, &stale), "{actions:?}");
    assert_eq!(fleet.view(job).state, JobState::Cancelled);
}
