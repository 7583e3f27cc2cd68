// kill_command N HOW PROGRAM [ARGUMENT...]: runs the program. When the program, or a process that it started,
// enters the N-th system call that changes files (counted from 0), HOW says what happens:
//   all, one   all are killed, or only the one that made the call
//   full       from this call on every one that needs room on the disk fails with ENOSPC
//   readonly   from this call on every one fails with EROFS, as on a disk that the system has given up
//   meet       the shell command in KILL_COMMAND_MEETING runs to its end before the call is made
// Waits until all are gone. Exits with 137 if it has killed, with 125 where processes cannot be traced, with
// 124 where full, readonly or meet found fewer calls, else with the program's exit code.
#include <elf.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/user.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>

#include "kill_points.h"

namespace {

constexpr int kNotReached = 124, kNoTracing = 125, kKilled = 137;
constexpr std::array kCallsThatNeedRoom = {
    SYS_write,  SYS_pwrite64, SYS_writev, SYS_pwritev,   SYS_fallocate,
    SYS_openat, SYS_mkdirat,  SYS_linkat, SYS_symlinkat,
#ifdef SYS_open
    SYS_open,   SYS_mkdir,    SYS_link,   SYS_symlink,   SYS_creat,
#endif
};

// The process that a thread belongs to.
pid_t process_of(pid_t thread) {
    std::ifstream status("/proc/" + std::to_string(thread) + "/status");
    for (std::string key; status >> key;) {
        if (pid_t process = 0; key == "Tgid:" && status >> process) return process;
    }
    return thread;
}

bool needs_room(pid_t thread) {
    __ptrace_syscall_info call{};
    return ::ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof call, &call) > 0 &&
           std::find(kCallsThatNeedRoom.begin(), kCallsThatNeedRoom.end(),
                     static_cast<long>(call.seccomp.nr)) != kCallsThatNeedRoom.end();
}

// The call is not made and returns this error. False: not known how to on this processor.
bool fail(pid_t thread, int error_number) {
    user_regs_struct registers{};
    iovec all = {&registers, sizeof registers};
    if (::ptrace(PTRACE_GETREGSET, thread, NT_PRSTATUS, &all) != 0) return false;
#if defined(__x86_64__)
    registers.orig_rax = static_cast<unsigned long long>(-1);
    registers.rax = static_cast<unsigned long long>(-error_number);
#elif defined(__aarch64__)
    registers.regs[0] = static_cast<unsigned long long>(-error_number);
    int none = -1;
    iovec number = {&none, sizeof none};
    if (::ptrace(PTRACE_SETREGSET, thread, NT_ARM_SYSTEM_CALL, &number) != 0) return false;
#else
    return false;
#endif
    return ::ptrace(PTRACE_SETREGSET, thread, NT_PRSTATUS, &all) == 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) return kNoTracing;
    const int chosen = std::atoi(argv[1]);
    const std::string how = argv[2];
    const bool kills = how == "all" || how == "one";
    const char* const meeting = std::getenv("KILL_COMMAND_MEETING");
    if (how == "meet" && meeting == nullptr) return kNoTracing;
    const pid_t child = ::fork();
    if (child == 0) {
        if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(kNoTracing);
        ::raise(SIGSTOP);
        if (flashoptim::test::stop_at_calls_that_change_files()) ::execvp(argv[3], argv + 3);
        ::_exit(kNoTracing);
    }
    int status = 0, exit_code = kNoTracing, entered = 0;
    ::waitpid(child, &status, 0);
    if (!WIFSTOPPED(status)) return kNoTracing;
    ::ptrace(PTRACE_SETOPTIONS, child, nullptr,
             PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                 PTRACE_O_EXITKILL);
    ::ptrace(PTRACE_CONT, child, nullptr, nullptr);
    std::set<pid_t> processes = {child}, stopped_once = {child};
    bool has_killed = false;
    for (pid_t thread = 0; (thread = ::waitpid(-1, &status, __WALL)) > 0 || errno == EINTR;) {
        if (thread <= 0) continue;
        if (!WIFSTOPPED(status)) {
            if (thread == child) exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            continue;
        }
        processes.insert(process_of(thread));
        const bool is_new = stopped_once.insert(thread).second;
        const bool is_call = status >> 8 == (SIGTRAP | (PTRACE_EVENT_SECCOMP << 8)) && !has_killed &&
                             flashoptim::test::changes_files(thread);
        const int number = is_call ? entered++ : -1;
        if (kills && number == chosen) {
            has_killed = true;
            const pid_t caller = process_of(thread);
            for (const pid_t process : how == "all" ? processes : std::set{caller}) ::kill(process, SIGKILL);
            continue;
        }
        if (how == "meet" && number == chosen && std::system(meeting) == -1) return kNoTracing;
        const int error_number = how == "readonly" ? EROFS : how == "full" && needs_room(thread) ? ENOSPC : 0;
        if (number >= chosen && error_number != 0 && !fail(thread, error_number)) return kNoTracing;
        const int signal = WSTOPSIG(status);
        const bool is_event = status >> 16 != 0 || (is_new && signal == SIGSTOP);
        ::ptrace(PTRACE_CONT, thread, nullptr, is_event || signal == SIGTRAP ? 0 : signal);
    }
    if (has_killed) return kKilled;
    return !kills && entered <= chosen ? kNotReached : exit_code;
}
