//! What the drivers' stories in the simulated kernel share: how often they are told, an access, and what happens to two pages meanwhile.
#![allow(dead_code, reason = "each test file uses its part")]

use isomem_core::addr::PAGE_SIZE;
use isomem_core::mirror::pin::Pin;
use isomem_core::world::Access;
use isomem_sim::journal::{Actor, Event, Name};
use isomem_sim::kernel::Op;
use isomem_sim::rig::{MM, Rig};
use isomem_sim::world::SimWorld;

use crate::common::{Times, rounds, value};

pub(crate) const ROUNDS: usize = rounds(2, 200);
pub(crate) const TIMES: Times = Times {
    plain: 4,
    schedules: 2_000,
};

/// An access of the device called `name` to word `word` of the page that `pin` is of. Memory that is gone fails the story.
pub(crate) fn touch(world: &SimWorld, name: Name, pin: &Pin<'_>, word: usize, op: Op) -> u64 {
    let process = world.process();
    let (device, mm) = (name, MM);
    process.kernel().journal().record(Event::Works { device, mm });
    let (at, known) = (pin.addr() / PAGE_SIZE, pin.start().get() / PAGE_SIZE);
    let done = process.access(Actor::Device(name), at, known, word, op);
    done.expect("ENG-2, SHD-3, USR-2: what is pinned is mapped")
}

/// The program's own use of word 0 of its pages.
pub(crate) fn used_by_the_program(rig: &Rig) {
    for round in 0..ROUNDS {
        rig.cpu_write(round % 2, 0, value(1, round));
        rig.cpu_read(round % 2, 0);
    }
}

pub(crate) fn taken_by_another_device(rig: &Rig) {
    for _ in 0..ROUNDS {
        rig.migrate(0, 2);
        rig.home(0, 1);
    }
}

pub(crate) fn forked_and_protected(rig: &Rig) {
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            rig.fork().exit();
        } else {
            rig.protect(0, 1, Some(Access::Write)).unwrap();
        }
    }
}
