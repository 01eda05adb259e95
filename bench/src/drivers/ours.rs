//! The drivers on isomem's core.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use isomem::Mm;
use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::bus::{Bus, BusError, Span};
use isomem_core::mirror::DeviceHandle;
use isomem_core::mirror::pin::Pin;
use isomem_core::mm::{MemoryConfig, MemoryKind};
use isomem_core::notifier::Blocking;
use isomem_core::world::Access;
use isomem_drivers::engines::{Engine, EngineError, Engines, Queue};
use isomem_drivers::odp::{Nic, Segment, Work};
use isomem_drivers::shadow::{GuestError, MemSlot, Shadow};
use isomem_drivers::svm::{Context, Home, Svm};
use isomem_drivers::userptr::{Policy, Stopped, SubmitError, UserPtr};
use isomem_linux::{Linux, Window};

use super::{Buffer, DEPTH, Driver, HALF_BYTES, JOB, Places, add_one, each_unit};
use crate::BenchError;
use crate::rig::refused;
use crate::sys::{Memory, protect_as_it_is, window};

/// What a unit does with the page that `pin` is of.
fn take(world: &Linux, window: &Window, pin: Pin<'_>, page: &mut Buffer) -> Result<(), BusError> {
    let span = Span::new(pin, window, Access::Write).expect("the window has all the memory, for writing");
    take_span(world, &span, page)
}

fn take_span(world: &Linux, span: &Span<'_>, page: &mut Buffer) -> Result<(), BusError> {
    world.load(span, 0, &mut page.0)?;
    add_one(page);
    world.store(span, 0, &page.0)
}

/// The memory that a driver works on, in the address space that it mirrors.
pub(super) struct Place {
    mm: Mm,
    range: PageRange,
    window: Window,
}

impl Place {
    fn new(memory: &Memory) -> Result<Self, BenchError> {
        Ok(Self {
            mm: Mm::current().map_err(refused)?,
            range: memory.range(),
            window: window(memory),
        })
    }
}

/// What a driver does on a place.
pub(super) trait Works: Sync {
    /// See [`Driver::work`].
    fn work(&self, place: &Place, units: usize, count: usize) -> Result<(), BenchError>;
}

/// Dropped in the order of its fields.
pub(super) struct Ours<D> {
    driver: D,
    place: Place,
}

impl<D: Works> Driver for Ours<D> {
    fn work(&self, units: usize, count: usize) -> Result<(), BenchError> {
        self.driver.work(&self.place, units, count)
    }

    fn invalidate(&self, page: PageRange) -> Result<(), BenchError> {
        protect_as_it_is(&self.place.mm, page, Access::Write).map_err(refused)
    }
}

/// Dropped in the order of its fields.
pub(super) struct OurSvm {
    context: Context<Linux>,
    _svm: Svm<Linux>,
    _device: DeviceHandle<Linux>,
}

pub(super) fn svm(memory: &Memory) -> Result<Ours<OurSvm>, BenchError> {
    let place = Place::new(memory)?;
    let config = MemoryConfig {
        name: "svm",
        capacity_bytes: PAGE_SIZE,
        mirror_budget_bytes: None,
        kind: MemoryKind::Private,
    };
    let device = place.mm.core().register(config).map_err(refused)?;
    let svm = Svm::new(place.mm.core()).map_err(refused)?;
    let driver = OurSvm {
        context: svm.open(&device, Home::InPlace).map_err(refused)?,
        _svm: svm,
        _device: device,
    };
    Ok(Ours { driver, place })
}

impl Works for OurSvm {
    fn work(&self, place: &Place, units: usize, count: usize) -> Result<(), BenchError> {
        let (start, window) = (place.range.start(), place.window);
        let items: Result<Vec<_>, _> = (0..units)
            .map(|unit| {
                self.context.launch(move |lane| {
                    let (mut places, mut page) = (Places::new(unit, 0), Buffer::new());
                    (0..count).try_for_each(|_| {
                        let addr = start + places.next();
                        lane.with(&window, addr, PAGE_SIZE, Access::Write, |world, span| {
                            take_span(world, &span, &mut page)
                        })
                    })
                })
            })
            .collect();
        items
            .map_err(refused)?
            .into_iter()
            .try_for_each(|item| item.wait().map_err(refused))
    }
}

pub(super) fn userptr(memory: &Memory) -> Result<Ours<UserPtr<Linux>>, BenchError> {
    let place = Place::new(memory)?;
    let driver = UserPtr::new(place.mm.core()).map_err(refused)?;
    Ok(Ours { driver, place })
}

impl Works for UserPtr<Linux> {
    fn work(&self, place: &Place, units: usize, count: usize) -> Result<(), BenchError> {
        let (range, window) = (place.range, place.window);
        each_unit(units, |unit| {
            let object = self
                .object(range.start(), range.len_bytes(), Access::Write, Policy::Survives)
                .map_err(refused)?;
            let done = Arc::new(AtomicUsize::new(0));
            loop {
                // What a cancelled job did counts, and the next one goes on elsewhere.
                let before = done.load(Ordering::Relaxed);
                if before == count {
                    return Ok(());
                }
                let wanted = JOB.min(count - before);
                let (taken, mut places) = (done.clone(), Places::new(unit, before));
                let job = self.submit(&[&object], Blocking::May, move |job| {
                    let mut page = Buffer::new();
                    for _ in 0..wanted {
                        let took = job.with(0, places.next(), PAGE_SIZE, Access::Write, |world, pin| {
                            take(world, &window, pin, &mut page)
                        })?;
                        took.map_err(|_| Stopped::Outside)?;
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                });
                match job {
                    Ok(()) | Err(SubmitError::Stopped(Stopped::Cancelled(_))) => {}
                    Err(error) => return Err(refused(error)),
                }
            }
        })
    }
}

/// The guest's number of its first page.
const GFN: usize = 0x100;

pub(super) fn shadow(memory: &Memory) -> Result<Ours<Shadow<Linux>>, BenchError> {
    let place = Place::new(memory)?;
    let slot = MemSlot {
        first_gfn: GFN,
        host: place.range,
    };
    let driver = Shadow::new(place.mm.core(), &[slot]).map_err(refused)?;
    Ok(Ours { driver, place })
}

impl Works for Shadow<Linux> {
    fn work(&self, place: &Place, units: usize, count: usize) -> Result<(), BenchError> {
        let window = place.window;
        each_unit(units, |unit| {
            let ran = self.run(move |guest| {
                let (mut places, mut page) = (Places::new(unit, 0), Buffer::new());
                (0..count).try_for_each(|_| {
                    let gpa = GFN * PAGE_SIZE + places.next();
                    let took = guest.with(gpa, PAGE_SIZE, Access::Write, |world, pin| {
                        take(world, &window, pin, &mut page)
                    })?;
                    took.map_err(|_| GuestError::NoSlot(gpa / PAGE_SIZE))
                })
            });
            ran.map_err(refused)
        })
    }
}

pub(super) fn odp(memory: &Memory) -> Result<Ours<Nic<Linux>>, BenchError> {
    let place = Place::new(memory)?;
    let driver = Nic::open(place.mm.core()).map_err(refused)?;
    Ok(Ours { driver, place })
}

impl Works for Nic<Linux> {
    fn work(&self, place: &Place, units: usize, count: usize) -> Result<(), BenchError> {
        let (range, window) = (place.range, place.window);
        let key = self.register(window, Some(range), Access::Write).map_err(refused)?;
        each_unit(units, |unit| {
            let queue = self.queue().map_err(refused)?;
            let mut places = Places::new(unit, 0);
            let collect = || match queue.wait().map_err(refused)? {
                Some(completion) => completion.result.map(drop).map_err(refused),
                None => unreachable!("a request is posted"),
            };
            for posted in 0..count {
                if posted >= DEPTH {
                    collect()?;
                }
                let from = places.next() % HALF_BYTES;
                let [from, to] = [from, from + HALF_BYTES].map(|offset| Segment {
                    key,
                    addr: range.start() + offset,
                    len_bytes: PAGE_SIZE,
                });
                queue.post(posted as u64, Work::Copy { from, to }).map_err(refused)?;
            }
            (0..DEPTH.min(count)).try_for_each(|_| collect())
        })?;
        self.deregister(key).map_err(refused)
    }
}

/// Dropped in the order of its fields.
pub(super) struct OurEngines {
    queues: [Queue<Linux>; 2],
    _engines: Engines<Linux>,
}

pub(super) fn engines(memory: &Memory) -> Result<Ours<OurEngines>, BenchError> {
    let place = Place::new(memory)?;
    let engines = Engines::new(place.mm.core()).map_err(refused)?;
    let queue = |engine| engines.queue(engine, place.range, Access::Write).map_err(refused);
    let driver = OurEngines {
        queues: [queue(Engine::Graphics)?, queue(Engine::Compute)?],
        _engines: engines,
    };
    Ok(Ours { driver, place })
}

impl Works for OurEngines {
    fn work(&self, place: &Place, units: usize, count: usize) -> Result<(), BenchError> {
        let (start, window) = (place.range.start(), place.window);
        let works: Result<Vec<_>, _> = (0..units)
            .map(|number| {
                self.queues[number].launch(move |unit| {
                    let (mut places, mut page) = (Places::new(number, 0), Buffer::new());
                    (0..count).try_for_each(|_| {
                        let addr = start + places.next();
                        let took = unit.with(addr, PAGE_SIZE, Access::Write, |world, pin| {
                            take(world, &window, pin, &mut page)
                        })?;
                        took.map_err(|_| EngineError::Full)
                    })
                })
            })
            .collect();
        works
            .map_err(refused)?
            .into_iter()
            .try_for_each(|work| work.wait().map_err(refused))
    }
}
