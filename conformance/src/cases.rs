//! The cases, by what they are about.

mod access;
mod arguments;
mod defects;
mod exclusive;
mod lifetime;
mod migrate;
mod selftests;
mod snapshot;

use crate::bench::{Bench, Outcome};
use crate::machine::Machine;

/// Whether the kernel's own driver does the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// It does.
    Same,
    /// It has a defect there: it would fail the case, or worse.
    Defect,
    /// isomem knowingly does something else; `docs/linux-parity.md` says why. Not run against the kernel's.
    Differs,
}

/// One promise, and how to try it.
pub struct Case<M: Machine> {
    /// What is promised.
    pub name: &'static str,
    /// Whether a kernel with its own driver can be asked for it.
    pub kernel: Kernel,
    body: fn(&Bench<'_, M>) -> Outcome,
}

impl<M: Machine> core::fmt::Debug for Case<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name)
    }
}

impl<M: Machine> Case<M> {
    const fn new(name: &'static str, kernel: Kernel, body: fn(&Bench<'_, M>) -> Outcome) -> Self {
        Self { name, kernel, body }
    }

    /// Runs it.
    pub fn run(&self, machine: &M) -> Outcome {
        (self.body)(&Bench::new(machine))
    }
}

/// A module's list of cases, each named after its function.
macro_rules! cases {
    ($($kernel:ident $name:ident)*) => {
        pub(super) fn all<M: $crate::machine::Machine>() -> Vec<super::Case<M>> {
            vec![$(super::Case::new(stringify!($name), super::Kernel::$kernel, $name::<M>)),*]
        }
    };
}
use cases;

/// Every case.
pub fn all<M: Machine>() -> Vec<Case<M>> {
    let modules = [
        arguments::all,
        access::all,
        migrate::all,
        snapshot::all,
        exclusive::all,
        lifetime::all,
        defects::all,
        selftests::all,
    ];
    modules.iter().flat_map(|module| module()).collect()
}
