// Processes that are killed when they enter their n-th system call that can change what is on the disk:
// between two of those nothing changes there, so these are all the states in which a dying process can leave
// it. Asserts nothing.
#pragma once

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace flashoptim::test {

inline constexpr std::array kCallsThatChangeFiles = {
    SYS_write,     SYS_pwrite64,  SYS_writev,  SYS_pwritev,  SYS_ftruncate, SYS_truncate,
    SYS_fallocate, SYS_openat,    SYS_mkdirat, SYS_renameat, SYS_renameat2, SYS_unlinkat,
    SYS_linkat,    SYS_symlinkat, SYS_fchmod,  SYS_fchmodat,
#ifdef SYS_rename  // the names that only older processors have
    SYS_open,      SYS_rename,    SYS_mkdir,   SYS_rmdir,    SYS_unlink,    SYS_link,
    SYS_symlink,   SYS_chmod,     SYS_creat,
#endif
};

/// Makes the kernel stop this process, for whoever traces it, where it enters one of these calls. Returns
/// whether it does.
inline bool stop_at_calls_that_change_files() {
    std::vector<sock_filter> program = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
    for (const auto call : kCallsThatChangeFiles) {
        program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(call), 0, 1));
        program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE));
    }
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    const sock_fprog filter = {static_cast<unsigned short>(program.size()), program.data()};
    return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

/// Whether the call at which a traced process was stopped counts: not where it only opens a file to read it
/// or tells somebody something.
inline bool changes_files(pid_t process) {
    __ptrace_syscall_info call{};
    if (::ptrace(PTRACE_GET_SYSCALL_INFO, process, sizeof call, &call) <= 0) return true;
    const auto is_making = [&](int argument) {
        return (call.seccomp.args[argument] & (O_CREAT | O_TRUNC)) != 0;
    };
    if (call.seccomp.nr == SYS_write && call.seccomp.args[0] <= STDERR_FILENO) return false;
    if (call.seccomp.nr == SYS_openat) return is_making(2);
#ifdef SYS_open
    if (call.seccomp.nr == SYS_open) return is_making(1);
#endif
    return true;
}

/// How a process ended that was to be killed.
struct KilledProcess {
    bool was_killed = false;  ///< false: it was done before
    int exit_code = 0;        ///< of one that was done
};

/// Runs `action` in a child process, which exits with the code that it returns, and kills it when it enters
/// its n-th call that changes files, counted from 0. Nothing where processes cannot be traced.
template <typename Action>
std::optional<KilledProcess> kill_at_call(int n, Action action) {
    const pid_t child = ::fork();
    if (child == 0) {
        if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(3);
        ::raise(SIGSTOP);
        if (!stop_at_calls_that_change_files()) ::_exit(3);
        int code = 2;
        try {
            code = action();
        } catch (...) {
        }
        ::_exit(code);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    if (!WIFSTOPPED(status)) return std::nullopt;
    ::ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL);
    for (int entered = 0; entered <= n;) {
        ::ptrace(PTRACE_CONT, child, nullptr, nullptr);
        ::waitpid(child, &status, 0);
        if (WIFEXITED(status)) {
            if (WEXITSTATUS(status) == 3) return std::nullopt;
            return KilledProcess{false, WEXITSTATUS(status)};
        }
        const bool is_at_call = (status >> 8) == (SIGTRAP | (PTRACE_EVENT_SECCOMP << 8));
        if (is_at_call && changes_files(child)) ++entered;
    }
    ::kill(child, SIGKILL);
    ::waitpid(child, &status, 0);
    return KilledProcess{WIFSIGNALED(status), 0};
}

}  // namespace flashoptim::test
