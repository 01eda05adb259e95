//! The drivers as workers of the work list, on any world.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod engines;
pub(crate) mod odp;
pub(crate) mod shadow;
pub(crate) mod svm;
pub(crate) mod userptr;

use isomem_conformance::Failure;
use isomem_conformance::work::{self, Done, Driver, Item, Op, Open, Program, Step, Stop};
use isomem_core::bus::{AtomicOp, Bus, BusError, Span};
use isomem_core::mirror::pin::Pin;
use isomem_core::mm::Mm;

/// A program in a world that drivers can be opened in.
pub(crate) trait Host: Program {
    type World: Bus;

    fn mm(&self) -> &Mm<Self::World>;

    /// All of its memory. What is accessed through it is accessed by words, by everybody.
    fn window(&self) -> <Self::World as Bus>::Window;
}

/// The item of the list that a test is named after.
pub(crate) fn item<H: Host>(test: &str) -> Item<H> {
    let is_meant = |item: &Item<H>| test.ends_with(item.name);
    work::list().into_iter().find(is_meant).expect("an item of the list")
}

/// Every driver.
pub(crate) fn all<H: Host>() -> Vec<(&'static str, Open<H>)> {
    vec![
        ("svm", svm::open),
        ("odp", odp::open),
        ("userptr", userptr::open),
        ("shadow", shadow::open),
        ("engines", engines::open),
    ]
}

type Opened = Result<Box<dyn Driver>, Failure>;

/// What should not fail here.
pub(crate) fn wrong(error: impl core::fmt::Debug) -> Failure {
    Failure::Wrong(format!("{error:?}"))
}

/// Does a step through a pin of its word.
fn touch<W: Bus>(world: &W, window: &W::Window, pin: Pin<'_>, op: Op) -> Result<u64, BusError> {
    let (addr, access) = (pin.start().get(), op.access());
    let len_bytes = pin.len_bytes();
    let outside = BusError::Outside {
        addr,
        len_bytes,
        access,
    };
    let span = Span::new(pin, window, access).ok_or(outside)?;
    match op {
        Op::Load => {
            let mut bytes = [0; 8];
            world.load(&span, 0, &mut bytes)?;
            Ok(u64::from_ne_bytes(bytes))
        }
        Op::Store(value) => world.store(&span, 0, &value.to_ne_bytes()).map(|()| 0),
        Op::Add(value) => world.atomic_u64(&span, 0, AtomicOp::Add(value)),
    }
}

/// What work that runs elsewhere has done so far.
type Seen = std::sync::Arc<std::sync::Mutex<Vec<u64>>>;

/// Runs `work`, which says what each step that it did found, also if it fails then.
fn counted(steps: &[Step], work: impl FnOnce(Vec<Step>, Seen) -> Result<(), Stop>) -> Done {
    let seen = Seen::new(Vec::with_capacity(steps.len()).into());
    let stop = work(steps.to_vec(), seen.clone()).err();
    let seen = core::mem::take(&mut *seen.lock().expect("nobody panics with it"));
    Done { seen, stop }
}

/// Does each step by `by`, and takes down what it found.
fn each<E>(steps: &[Step], seen: &Seen, mut by: impl FnMut(&Step) -> Result<u64, E>) -> Result<(), E> {
    steps.iter().try_for_each(|step| {
        let found = by(step)?;
        seen.lock().expect("nobody panics with it").push(found);
        Ok(())
    })
}

/// A test of each item of the list for each driver, by `run(driver, test, open)`.
macro_rules! work_list {
    ($($driver:ident)*) => {
        $(
            mod $driver {
                use super::{drivers::$driver::open, run};

                #[test]
                fn drv_1_scan() {
                    run(stringify!($driver), "drv_1_scan", open);
                }

                #[test]
                fn drv_1_random() {
                    run(stringify!($driver), "drv_1_random", open);
                }

                #[test]
                fn drv_1_producer_and_consumer() {
                    run(stringify!($driver), "drv_1_producer_and_consumer", open);
                }

                #[test]
                fn drv_1_adds() {
                    run(stringify!($driver), "drv_1_adds", open);
                }

                #[test]
                fn inv_5_unmap_and_remap() {
                    run(stringify!($driver), "inv_5_unmap_and_remap", open);
                }

                #[test]
                fn life_6_forks() {
                    run(stringify!($driver), "life_6_forks", open);
                }

                #[test]
                fn life_3_exit() {
                    run(stringify!($driver), "life_3_exit", open);
                }
            }
        )*
    };
}
