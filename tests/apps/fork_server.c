// A fork server that makes hundreds of starts of one program cost as much as one. It is loaded before the
// program (LD_PRELOAD) and replaces its main(). For each request it forks a child that calls the real main(),
// so LibTorch is loaded once. For tests only.
//
// A request is one message on the socket FORK_SERVER_SOCKET: the user ("0": as the server) and the
// arguments, each ended by a zero byte. It carries five descriptors: standard input, output and error of
// the child, its folder, and the socket of the answer. The answer is two ints: the child's process group,
// then its status from waitpid().
#define _GNU_SOURCE
#include <dlfcn.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

enum { kDescriptors = 5, kLongest = 1 << 18, kMostArguments = 256 };

typedef int (*Main)(int, char**, char**);
typedef int (*Start)(Main, int, char**, void (*)(void), void (*)(void), void (*)(void), void*);

static Main real_main;
static char request[kLongest + 1];

static void run_child(const int* descriptors, char** arguments, int count, char* program) {
    setsid();
    for (int n = 0; n < 3; ++n) dup2(descriptors[n], n);
    if (fchdir(descriptors[3]) != 0) _exit(126);
    for (int n = 0; n < kDescriptors; ++n) close(descriptors[n]);
    const int user = atoi(arguments[0]);
    if (user != 0 && (setgroups(0, NULL) != 0 || setgid((gid_t)user) != 0 || setuid((uid_t)user) != 0))
        _exit(126);
    prctl(PR_SET_PDEATHSIG,
          SIGKILL);  // after setuid(), which clears it: a test that is killed leaves nothing that runs on
    arguments[0] = program;
    const int code = real_main(count, arguments, environ);
    fflush(NULL);
    _exit(code);  // the destructors of LibTorch take ten times as long as a refusal
}

// One process for each request, so that the answer waits for the child alone.
static void keep_child(const int* descriptors, char** arguments, int count, char* program) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const pid_t child = fork();
    if (child == 0) run_child(descriptors, arguments, count, program);
    int status = -1;
    const int group = (int)child;
    if (write(descriptors[4], &group, sizeof group) < 0) _exit(1);
    waitpid(child, &status, 0);
    _exit(write(descriptors[4], &status, sizeof status) < 0);
}

static int serve(int argc, char** argv, char** environment) {
    (void)argc;
    (void)environment;
    const int server = atoi(getenv("FORK_SERVER_SOCKET"));
    unsetenv("FORK_SERVER_SOCKET");
    unsetenv("LD_PRELOAD");
    for (;;) {
        int descriptors[kDescriptors];
        union {
            char bytes[CMSG_SPACE(sizeof descriptors)];
            struct cmsghdr aligned;
        } control;
        struct iovec part = {request, kLongest};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        const ssize_t size = recvmsg(server, &message, 0);
        if (size <= 0) _exit(0);
        memcpy(descriptors, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof descriptors);
        char* arguments[kMostArguments + 1];
        int count = 0;
        for (char* at = request; at < request + size && count < kMostArguments; at += strlen(at) + 1)
            arguments[count++] = at;
        arguments[count] = NULL;
        if (fork() == 0) {
            close(server);
            keep_child(descriptors, arguments, count, argv[0]);
        }
        for (int n = 0; n < kDescriptors; ++n) close(descriptors[n]);
        while (waitpid(-1, NULL, WNOHANG) > 0) {
        }
    }
}

int __libc_start_main(Main main, int argc, char** argv, void (*init)(void), void (*fini)(void),
                      void (*end)(void), void* stack) {
    const Start start = (Start)dlsym(RTLD_NEXT, "__libc_start_main");
    real_main = main;
    return start(getenv("FORK_SERVER_SOCKET") != NULL ? serve : main, argc, argv, init, fini, end, stack);
}
