// kill_command N all|one PROGRAM [ARGUMENT...]: runs the program and kills it when it, or a process that it
// started, enters the N-th system call that changes files, counted from 0: all of them, or only the one that
// made the call. Waits until all are gone. Exits with 137 if it has killed, with the program's exit code if
// that was done before, with 125 where processes cannot be traced.
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>

#include "kill_points.h"

namespace {

constexpr int kNoTracing = 125, kKilled = 137;

// The process that a thread belongs to.
pid_t process_of(pid_t thread) {
    std::ifstream status("/proc/" + std::to_string(thread) + "/status");
    for (std::string key; status >> key;) {
        if (pid_t process = 0; key == "Tgid:" && status >> process) return process;
    }
    return thread;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) return kNoTracing;
    const int chosen = std::atoi(argv[1]);
    const bool all = std::string(argv[2]) == "all";
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
        if (status >> 8 == (SIGTRAP | (PTRACE_EVENT_SECCOMP << 8)) && !has_killed &&
            flashoptim::test::changes_files(thread) && entered++ == chosen) {
            has_killed = true;
            const pid_t caller = process_of(thread);
            for (const pid_t process : all ? processes : std::set{caller}) ::kill(process, SIGKILL);
            continue;
        }
        const int signal = WSTOPSIG(status);
        const bool is_event = status >> 16 != 0 || (is_new && signal == SIGSTOP);
        ::ptrace(PTRACE_CONT, thread, nullptr, is_event || signal == SIGTRAP ? 0 : signal);
    }
    return has_killed ? kKilled : exit_code;
}
