//! A day without the API server, in a time that jumps.

use std::time::Duration;

use super::{World, view};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// A change that was made meanwhile is applied this soon after the server is back.
const SOON: Duration = Duration::from_secs(3);

#[test]
fn a_day_without_the_server_loses_nothing_and_asks_no_more_often_than_once_a_second() {
    let mut world = World::new(1);
    world.faults = false;
    (0..50).for_each(|_| world.change());
    world.heal();
    world.faults = false;
    let before = view(&world.index.snapshot());
    assert!(before.len() > 2, "{before:?}");

    world.server.up = false;
    (0..50).for_each(|_| world.change());
    let start = world.now;
    let (mut attempts, mut longest) = (0_u32, Duration::ZERO);
    while world.now - start < DAY {
        let at = world.now;
        world.interact();
        attempts += 1;
        longest = longest.max(world.now - at);
        assert_eq!(view(&world.index.snapshot()), before, "after {:?}", world.now - start);
    }
    let pause = DAY / attempts;
    println!("{attempts} attempts in 24 h, one each {pause:?}, the longest pause {longest:?}");
    assert!(pause >= Duration::from_secs(1), "an attempt each {pause:?}");
    assert!(longest <= SOON, "a pause of {longest:?}");

    let took = world.heal();
    println!("the truth is back {took:?} after the server");
    assert!(took <= SOON, "{took:?}");
}
