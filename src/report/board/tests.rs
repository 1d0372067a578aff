//! The board on a clock of the tests' own.

use std::time::Duration;

use super::*;

/// A board, and seconds since it was made.
struct World {
    board: Board,
    start: Instant,
    seconds: f64,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as a starting point")]
    fn new() -> Self {
        Self { board: Board::default(), start: Instant::now(), seconds: 0.0 }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.seconds)
    }

    /// Lets time pass, with a tick each second.
    fn wait(&mut self, seconds: f64) {
        let until = self.seconds + seconds;
        while self.seconds.floor() + 1.0 <= until {
            self.seconds = self.seconds.floor() + 1.0;
            self.board.tick(self.now());
        }
        self.seconds = until;
    }

    fn raise(&mut self, concern: Concern) {
        self.board.raise(concern, self.now());
    }

    fn clear(&mut self, code: Code, subject: &Subject) {
        self.board.clear(code, subject, self.now());
    }

    fn log(&mut self) -> Vec<String> {
        let words = |line: Line| match line.level {
            Level::Warn => format!("WARN {}", line.text),
            Level::Info => format!("INFO {}", line.text),
        };
        self.board.lines().into_iter().map(words).collect()
    }
}

fn refused(node: &str) -> Concern {
    Concern::new(Code::NodeRefused, format!("{node} is refused")).about(node)
}

#[test]
fn each_code_is_logged_when_it_is_raised_and_when_it_is_over() {
    // Only these two are told by others: the reason for waiting, and `ready`.
    let silent: Vec<Code> = Code::ALL.iter().copied().filter(|code| code.over().is_empty()).collect();
    assert_eq!(silent, [Code::NoLease, Code::Starting]);
    for code in Code::ALL.iter().copied().filter(|code| !silent.contains(code)) {
        let mut world = World::new();
        world.raise(Concern::new(code, "it is so"));
        assert_eq!(world.log(), ["WARN it is so"]);
        let (status, body) = world.board.readiness().answer();
        match code.severity() {
            Severity::Broken => assert_eq!((status, body.contains("it is so")), (503, true)),
            Severity::Degraded => assert_eq!((status, body.contains("it is so")), (200, true)),
            Severity::Note => assert_eq!(world.board.readiness(), Readiness::Ready),
        }
        assert_eq!(world.board.counts()[&(code, code.severity())], 1);
        world.wait(4.0);
        world.clear(code, &Subject::Here);
        assert_eq!(world.log(), [format!("INFO {} after 4 s", code.over())]);
        assert_eq!(world.board.readiness(), Readiness::Ready);
        assert!(world.board.counts().values().all(|count| *count == 0));
        world.clear(code, &Subject::Here);
        world.wait(60.0);
        assert_eq!(world.log(), [""; 0]);
    }
}

#[test]
fn what_stays_is_told_once_and_new_words_of_it_after_a_while() {
    let mut world = World::new();
    for _ in 0..100 {
        world.raise(Concern::new(Code::SourceUnreadable, "connection refused"));
        world.wait(1.0);
    }
    assert_eq!(world.log(), ["WARN connection refused"]);
    world.raise(Concern::new(Code::SourceUnreadable, "timed out"));
    world.raise(Concern::new(Code::SourceUnreadable, "no route"));
    world.raise(Concern::new(Code::SourceUnreadable, "forbidden"));
    world.raise(Concern::new(Code::SourceUnreadable, "unauthorized"));
    // Three different things are told at once; then it is enough for a while.
    assert_eq!(world.log(), ["WARN timed out", "WARN no route", "WARN forbidden"]);
    world.wait(11.0);
    assert_eq!(world.log(), ["WARN unauthorized"]);
    for text in ["timed out", "no route", "forbidden"] {
        world.raise(Concern::new(Code::SourceUnreadable, text));
    }
    world.log();
    // Its end is told although the last words of it were not.
    world.clear(Code::SourceUnreadable, &Subject::Here);
    assert_eq!(world.log(), ["INFO leases can be read again after 2 min"]);
}

#[test]
fn three_hundred_times_within_five_minutes_are_few_lines() {
    let mut world = World::new();
    let subject = refused("n2").subject;
    for _ in 0..300 {
        world.raise(refused("n2"));
        world.wait(0.5);
        world.clear(Code::NodeRefused, &subject);
        world.wait(0.5);
    }
    world.wait(600.0);
    let log = world.log();
    let both = ["WARN n2 is refused", "INFO n2: no longer refused after 500 ms"];
    assert_eq!(log[..6], [both, both, both].concat());
    assert_eq!(log[6], "INFO came and went: n2 is refused (9 times more in 10 s)");
    assert!(log.len() < 14, "{log:#?}");
    // One that stays in the end is told to stay.
    for _ in 0..3 {
        world.raise(refused("n2"));
        world.clear(Code::NodeRefused, &subject);
    }
    assert_eq!(world.log().len(), 6);
    world.raise(refused("n2"));
    world.wait(10.0);
    assert_eq!(world.log(), ["WARN n2 is refused (once more in 10 s)"]);
    world.clear(Code::NodeRefused, &subject);
    assert_eq!(world.log(), ["INFO n2: no longer refused after 10 s"]);
}

#[test]
fn twenty_equal_events_in_six_seconds_are_one_line() {
    let mut world = World::new();
    for _ in 0..20 {
        world.board.happened("repaired: put route 10.244.2.0/24".into(), world.now());
        world.wait(0.3);
    }
    world.wait(3.0);
    assert_eq!(world.log(), ["WARN repaired: put route 10.244.2.0/24 (20 times in 6 s)"]);
    world.board.happened("repaired: set flannel0 up".into(), world.now());
    assert_eq!(world.log(), [""; 0]);
    world.wait(2.0);
    assert_eq!(world.log(), ["WARN repaired: set flannel0 up"]);
    // One that goes on and on is told now and then, and at the end.
    for _ in 0..60 {
        world.board.happened("again".into(), world.now());
        world.wait(0.5);
    }
    world.board.finish(world.now());
    let log = world.log();
    assert!((3..=4).contains(&log.len()), "{log:#?}");
}

#[test]
fn a_set_of_concerns_takes_the_place_of_the_one_before() {
    let mut world = World::new();
    let codes = [Code::NodeRefused, Code::BackendMismatch];
    world.board.replace(&codes, vec![refused("n2"), refused("n3")], world.now());
    assert_eq!(world.log(), ["WARN n2 is refused", "WARN n3 is refused"]);
    assert_eq!(
        world.board.readiness().answer().1,
        "degraded: 2 nodes refused (see `flanneld routes`): n2 is refused"
    );
    world.wait(3.0);
    let other = Concern::new(Code::BackendMismatch, "n2 runs vxlan").about("n2");
    world.board.replace(&codes, vec![refused("n3"), other], world.now());
    assert_eq!(world.log(), ["WARN n2 runs vxlan", "INFO n2: no longer refused after 3 s"]);
    assert_eq!(world.board.text(Code::BackendMismatch, &Subject::Named("n2".into())), Some("n2 runs vxlan"));
    assert_eq!(world.board.texts(Code::NodeRefused).collect::<Vec<_>>(), ["n3 is refused"]);
}

#[test]
fn a_thousand_at_once_are_named_in_part() {
    let mut world = World::new();
    let all = |world: &mut World, count| {
        let concerns = (0..count).map(|number| refused(&format!("n{number}"))).collect();
        world.board.replace(&[Code::NodeRefused], concerns, world.now());
        world.log()
    };
    let log = all(&mut world, 1000);
    assert_eq!((log.len(), log[20].as_str()), (21, "WARN and 980 more of this kind (see `flanneld routes`)"));
    let log = all(&mut world, 0);
    assert_eq!((log.len(), log[20].as_str()), (21, "INFO and 980 more of this kind (see `flanneld routes`)"));
    // Nothing is kept for ever.
    world.wait(700.0);
    assert!(world.board.past.is_empty() && world.board.raised.is_empty());
}

#[test]
fn the_severity_is_the_one_it_was_raised_with() {
    let mut world = World::new();
    world.raise(Concern::new(Code::KernelWarning, "cannot set accept_ra").about("accept_ra"));
    assert_eq!(world.board.readiness(), Readiness::Ready);
    world.raise(Concern::new(Code::SourceUnreadable, "x"));
    world.raise(Concern::new(Code::ForeignRules, "y").with(Severity::Broken));
    world.raise(Concern::new(Code::NoLease, "waiting"));
    // Of what is broken the first is the reason; nothing else matters as long.
    assert_eq!(world.board.readiness().answer(), (503, "flanneld is not ready yet: waiting".into()));
    world.clear(Code::NoLease, &Subject::Here);
    assert_eq!(world.board.readiness().answer(), (503, "flanneld is not ready yet: y".into()));
    assert_eq!(world.board.counts()[&(Code::ForeignRules, Severity::Broken)], 1);
    assert_eq!(world.board.counts()[&(Code::ForeignRules, Severity::Degraded)], 0);
}
