//! The seccomp filter: the rows of `syscalls` as a BPF program, ready before the fork.
//! It starts by refusing system calls of foreign ABIs, whose numbers mean other calls.

use std::collections::BTreeMap;

use nix::libc::SYS_socket;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

use super::syscalls::{Condition, SOCKET_OR_PING, Test, When, denials};
use crate::sandbox::init::CALLS;

/// Numbers from here on are x32 calls: x86_64's architecture tag, other numbers. A filter that
/// compares numbers for equality lets every one of them pass.
const X32_SYSCALL_BIT: u32 = 0x4000_0000;

// Classic BPF, from linux/bpf_common.h and linux/seccomp.h.
const LOAD_NUMBER: sock_filter = sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
const JUMP_IF_GE: u16 = 0x35;
const RETURN: u16 = 0x06;
const RETURN_ERRNO: u32 = 0x0005_0000;

/// seccompiler's first three instructions: load the architecture, compare, kill.
const ARCHITECTURE_CHECK: usize = 3;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Builds the filter for this architecture.
///
/// seccompiler gives one errno to a whole filter, so there is one filter per errno, and they are
/// joined: each ends by falling into "allow", which is where the next one is put.
/// `with_ping` leaves sockets for echo requests.
pub(super) fn compile(with_ping: bool) -> Result<BpfProgram, BackendError> {
    let mut by_errno: BTreeMap<i32, Rules> = BTreeMap::new();
    for denial in denials() {
        let rules = by_errno.entry(denial.errno).or_default();
        let when = match denial.when {
            When::Any(_) if with_ping && denial.number == SYS_socket => When::Any(SOCKET_OR_PING),
            when => when,
        };
        rules.insert(denial.number, rules_of(when)?);
    }
    let mut program = BpfProgram::new();
    // The calls with the largest errno first: those are the ones on the way of every datagram.
    for (errno, rules) in by_errno.into_iter().rev() {
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(errno as u32),
            TargetArch::try_from(std::env::consts::ARCH)?,
        )?;
        let part = BpfProgram::try_from(filter)?;
        if program.is_empty() {
            program.extend_from_slice(&part[..ARCHITECTURE_CHECK]);
            program.extend(refuse_x32());
        } else {
            program.pop();
        }
        program.extend_from_slice(&part[ARCHITECTURE_CHECK..]);
    }
    Ok(program)
}

/// Builds the filter of process 1: what it does not need ends it, and the sandbox with it.
pub(super) fn compile_for_init() -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(
        CALLS.into_iter().map(|number| (number, Vec::new())).collect(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?
    .try_into()
}

fn refuse_x32() -> [sock_filter; 3] {
    [
        LOAD_NUMBER,
        sock_filter { code: JUMP_IF_GE, jt: 0, jf: 1, k: X32_SYSCALL_BIT },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: RETURN_ERRNO | nix::libc::EPERM as u32 },
    ]
}

fn rules_of(when: When) -> Result<Vec<SeccompRule>, BackendError> {
    match when {
        When::Always => Ok(Vec::new()),
        When::Any(alternatives) => alternatives
            .iter()
            .map(|all| {
                let conditions: Result<Vec<_>, _> = all.iter().map(condition).collect();
                SeccompRule::new(conditions?)
            })
            .collect(),
    }
}

fn condition(condition: &Condition) -> Result<SeccompCondition, BackendError> {
    let (operator, value) = match condition.test {
        Test::Is(value) => (SeccompCmpOp::Eq, value),
        Test::Not(value) => (SeccompCmpOp::Ne, value),
        Test::Bits { mask, value } => (SeccompCmpOp::MaskedEq(mask.into()), value),
    };
    SeccompCondition::new(condition.argument, SeccompCmpArgLen::Dword, operator, value.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_system_call_has_two_rows() {
        // Two rows for one number: with one errno the second replaces the first, with two the
        // filter of the first errno answers "allow" before the second is asked.
        let numbers: BTreeSet<i64> = denials().map(|denial| denial.number).collect();
        assert_eq!(numbers.len(), denials().count());
    }

    #[test]
    fn every_row_says_why() {
        for denial in denials() {
            assert!(denial.why.len() > 5, "{}", denial.name());
        }
    }

    #[test]
    fn the_same_rows_make_the_same_program() {
        assert_eq!(compile(false).unwrap(), compile(false).unwrap());
    }

    #[test]
    fn the_program_fits_and_ends_in_allow() {
        let program = compile(false).unwrap();
        assert_eq!(program.last().unwrap().k, ALLOW);
        assert!(program.len() < 1024, "{}", program.len());
    }

    #[test]
    fn every_row_without_conditions_is_refused_whatever_the_arguments() {
        let program = compile(false).unwrap();
        for denial in denials().filter(|denial| matches!(denial.when, When::Always)) {
            for arguments in [[0; 6], [u64::MAX; 6]] {
                let verdict = verdict(&program, NATIVE, denial.number as u32, arguments);
                assert_eq!(verdict, RETURN_ERRNO | denial.errno as u32, "{}", denial.name());
            }
        }
    }

    #[test]
    fn a_row_with_conditions_is_refused_exactly_when_one_of_its_lists_holds() {
        let program = compile(false).unwrap();
        for denial in denials() {
            let When::Any(alternatives) = denial.when else {
                continue;
            };
            for arguments in interesting(alternatives) {
                let refused = denial.refuses(&arguments);
                let want = if refused { RETURN_ERRNO | denial.errno as u32 } else { ALLOW };
                let verdict = verdict(&program, NATIVE, denial.number as u32, arguments);
                assert_eq!(verdict, want, "{} {arguments:x?}", denial.name());
                // The kernel drops the upper halves, so they must not change the verdict.
                let garbage = arguments.map(|argument| argument | 0xdead_beef << 32);
                let verdict = self::verdict(&program, NATIVE, denial.number as u32, garbage);
                assert_eq!(verdict, want, "{} {garbage:x?}", denial.name());
            }
        }
    }

    #[test]
    fn every_call_without_a_row_is_allowed() {
        let program = compile(false).unwrap();
        let refused: BTreeSet<i64> = denials().map(|denial| denial.number).collect();
        for number in (0..1024).filter(|number| !refused.contains(number)) {
            assert_eq!(verdict(&program, NATIVE, number as u32, [0; 6]), ALLOW, "{number}");
        }
    }

    #[test]
    fn x32_numbers_are_refused_and_other_architectures_killed() {
        let program = compile(false).unwrap();
        let refused = RETURN_ERRNO | nix::libc::EPERM as u32;
        for number in [X32_SYSCALL_BIT, X32_SYSCALL_BIT + 41, X32_SYSCALL_BIT + 512, u32::MAX] {
            assert_eq!(verdict(&program, NATIVE, number, [0; 6]), refused, "{number:#x}");
        }
        const I386: u32 = 0x4000_0003;
        assert_eq!(verdict(&program, I386, 20, [0; 6]), KILL_PROCESS);
    }

    #[test]
    fn process_1_is_left_its_own_calls_and_none_besides() {
        let program = compile_for_init().unwrap();
        for number in 0..1024 {
            let want = if CALLS.contains(&number) { ALLOW } else { KILL_PROCESS };
            assert_eq!(verdict(&program, NATIVE, number as u32, [0; 6]), want, "{number}");
        }
        let x32 = X32_SYSCALL_BIT | CALLS[0] as u32;
        assert_eq!(verdict(&program, NATIVE, x32, [0; 6]), KILL_PROCESS);
    }

    const ALLOW: u32 = 0x7fff_0000;
    const KILL_PROCESS: u32 = 0x8000_0000;
    const NATIVE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

    /// All combinations, over the arguments that a row looks at, of the values that it names,
    /// their neighbours, and every single bit.
    fn interesting(alternatives: &[&[Condition]]) -> Vec<[u64; 6]> {
        let mut values: [BTreeSet<u32>; 6] = Default::default();
        for condition in alternatives.iter().copied().flatten() {
            let (Test::Is(value) | Test::Not(value) | Test::Bits { value, .. }) = condition.test;
            let named = [value, value.wrapping_add(1), value.wrapping_sub(1), 0, 1, 2];
            let single = (0..32).map(|bit| 1 << bit);
            values[usize::from(condition.argument)].extend(named.into_iter().chain(single));
        }
        let mut all = vec![[0; 6]];
        for (index, values) in values.iter().enumerate().filter(|(_, values)| !values.is_empty()) {
            all = all
                .into_iter()
                .flat_map(|arguments| {
                    values.iter().map(move |value| {
                        let mut arguments: [u64; 6] = arguments;
                        arguments[index] = u64::from(*value);
                        arguments
                    })
                })
                .collect();
        }
        all
    }

    /// Runs the program as the kernel would: the few instructions that seccompiler makes.
    fn verdict(program: &[sock_filter], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let data = |offset: u32| match offset {
            0 => number,
            4 => arch,
            _ => {
                let argument = arguments[(offset as usize - 16) / 8];
                (if offset % 8 == 4 { argument >> 32 } else { argument }) as u32
            }
        };
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let instruction = &program[at];
            at += 1;
            let jump = |holds| usize::from(if holds { instruction.jt } else { instruction.jf });
            match instruction.code {
                0x20 => accumulator = data(instruction.k),
                0x54 => accumulator &= instruction.k,
                0x05 => at += instruction.k as usize,
                0x15 => at += jump(accumulator == instruction.k),
                0x25 => at += jump(accumulator > instruction.k),
                0x35 => at += jump(accumulator >= instruction.k),
                0x06 => return instruction.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }
}
