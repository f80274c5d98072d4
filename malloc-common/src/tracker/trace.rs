//! Sends what happens as events: the life of processes always, chains while a tracer listens.

use crate::abi::{CHAIN_HAS_ARENA, CHAIN_HAS_CALL, EVENT_CHAIN, EVENT_RAISE, EVENT_SYSCALL, Event, Origin, Syscall};
use crate::function::Function;
use crate::loss::Loss;
use crate::site::Cookie;

use super::{Kernel, Registers};

#[inline(always)]
pub(super) fn lifecycle<K: Kernel>(k: &K, kind: u32, [a, b, c]: [u64; 3]) {
    let values = [a, b, c, 0, 0, 0, 0, 0, 0, 0];
    send(k, &Event { kind, tgid: k.tgid(), tid: k.tid(), chain: 0, ns: k.now_ns(), comm: k.comm(), values });
}

#[inline(always)]
pub(super) fn chain<K: Kernel>(k: &K, cookie: Cookie, r: &Registers, flags: u64) {
    let mut values = [0, 0, 0, 0, 0, 0, 0, 0, flags, 0];
    let mut chain = 0;
    if let Some(mut flight) = super::open_flight(k) {
        flight.chain = flight.chain.wrapping_add(1);
        flight.chained = 1;
        chain = flight.chain;
        values[0] = flight.function as u64;
        values[1] = flight.call[0];
        values[2] = flight.call[1];
        values[3] = flight.call[2];
        values[4] = flight.arena[0];
        values[5] = flight.arena[1];
        // A frame that encloses this one stands higher on the stack: what a signal handler left behind does not.
        if flight.function != super::NO_FUNCTION && flight.call_sp >= r.sp {
            values[8] |= CHAIN_HAS_CALL;
        }
        if flight.arena_sp >= r.sp && flight.arena_sp <= flight.call_sp {
            values[8] |= CHAIN_HAS_ARENA;
        }
    }
    values[6] = r.arguments[0];
    values[7] = r.arguments[1];
    values[8] |= (cookie.0 & 0xff) << 8;
    values[9] = cookie.mp(r.ip).map_or(0, |(_, address)| address);
    send(k, &Event { kind: EVENT_CHAIN, tgid: k.tgid(), tid: k.tid(), chain, ns: k.now_ns(), comm: k.comm(), values });
}

#[inline(always)]
pub(super) fn syscall<K: Kernel>(k: &K, syscall: Syscall, origin: Origin, result: u64, nanoseconds: u64, now: u64) {
    if matches!(
        origin,
        Origin::MmapFile
            | Origin::MmapThreadStack
            | Origin::MmapOther
            | Origin::MunmapOther
            | Origin::MremapOther
            | Origin::BrkOther
    ) {
        return;
    }
    let mut event = Event {
        kind: EVENT_SYSCALL,
        tgid: k.tgid(),
        tid: k.tid(),
        chain: 0,
        ns: now,
        comm: k.comm(),
        values: [0, 0, 0, 0, 0, 0, result, nanoseconds, syscall as u64, origin as u64],
    };
    if let Some(flight) = k.flight() {
        event.chain = flight.chain;
        event.values[0] = flight.args[0];
        event.values[1] = flight.args[1];
        event.values[2] = flight.args[2];
        event.values[3] = flight.args[3];
        event.values[4] = flight.args[4];
        event.values[5] = flight.args[5];
    }
    send(k, &event);
}

/// Sends a raise with its stack, and without to a tracer: it stands before the chain of its cause. It goes without where
/// the ring of samples is full, too: rather a raise by nobody than none.
#[inline(always)]
pub(super) fn raise<K: Kernel>(k: &K, given: [u64; 5]) {
    let sampled = sample(k, EVENT_RAISE, given);
    if !sampled {
        k.lose(Loss::EventRingFull);
    }
    if k.tracing() || !sampled {
        let [a, b, c, d, _] = given;
        let values = [a, b, c, d, !sampled as u64, 0, 0, 0, 0, 0];
        let (tgid, tid) = (k.tgid(), k.tid());
        send(k, &Event { kind: EVENT_RAISE, tgid, tid, chain: 0, ns: k.now_ns(), comm: k.comm(), values });
    }
}

/// Sends what happened together with the stack it happened on; false when there is no room.
#[inline(always)]
pub(super) fn sample<K: Kernel>(k: &K, kind: u32, given: [u64; 5]) -> bool {
    let [a, b, c, d, e] = given;
    let values = [a, b, c, d, e, 0, 0, 0, 0, 0];
    let event = Event { kind, tgid: k.tgid(), tid: k.tid(), chain: 0, ns: k.now_ns(), comm: k.comm(), values };
    k.sample(&event)
}

#[inline(always)]
fn send<K: Kernel>(k: &K, event: &Event) {
    if !k.emit(event) {
        k.lose(Loss::EventRingFull);
    }
}

/// The function of a traced chain, if the chain has one.
#[must_use]
pub fn traced_function(value: u64) -> Option<Function> {
    u8::try_from(value).ok().and_then(Function::from_index)
}
