//! Small worlds, of which every interleaving is judged.

use glassine_core::judge::Bug;
use sim::exhaust::{self, Ask, Before, Scope, SmallWorld};

fn small(world: &str) -> SmallWorld {
    world.parse().expect("it is one")
}

/// One request on each connection, over slots; and a few worlds in which payloads go straight into their
/// slots, the template is read, or a connection breaks. `sim exhaust` runs them all.
#[test]
fn every_interleaving_holds() {
    let mut worlds = exhaust::worlds(Scope::Pairs);
    worlds.retain(|small| {
        let middle = small.asks.iter().filter(|asks| asks[0] == Ask::WriteMiddle).count();
        small.before == Before::Slots && !small.direct && !small.resets && middle < 2
    });
    worlds.extend([
        small("slots direct steady write-both read"),
        small("slots direct resets write-both read-middle"),
        small("slots staged resets write-part zero-part"),
        small("template staged steady write-part read-middle"),
        small("zero staged steady zero-both write-part"),
        small("set-aside staged resets write-part write-both"),
    ]);
    match exhaust::explore_all(&worlds, None, |_, _| {}) {
        Ok(all) => {
            println!("{all:?}");
            assert_eq!(all.worlds, worlds.len() as u64);
            // Fewer would mean that something is not a choice any more.
            assert!(all.states > 100_000 && all.interleavings > 1e12, "{all:?}");
        }
        Err(failed) => panic!("{} on path {:?}\n{}", failed.small, failed.path, failed.failure),
    }
}

/// The races that a small world is large enough for are found in it, whatever the odds.
#[test]
fn races_are_found_for_certain() {
    for (world, bug) in [
        ("slots staged steady read write-both,write-both", Bug::TornReply),
        ("slots staged steady read write-both,write-both", Bug::ReuseWhilePinned),
        ("slots staged steady write-part zero-part", Bug::LostHalf),
        ("slots staged steady write-part write-first,write-first", Bug::MergeUnpinned),
        ("template staged steady read,read flush", Bug::ReadinessRace),
        ("template staged steady write-part trim-first", Bug::WrongPredecessor),
        ("slots direct resets write-middle write-middle", Bug::MergeAfterAbort),
        ("set-aside staged resets write-part write-both", Bug::ClaimsMixedUp),
    ] {
        let found = exhaust::explore_all(&[small(world)], Some(bug), |_, _| {});
        assert!(found.is_err(), "{} is not found in {world}", bug.id());
    }
}
