/* A library to preload: one step of the file system below FAULT_ROOT fails or kills the process.
 *
 * Steps are the calls that change something: opening to write, write, fsync, rename, mkdir, unlink and so on.
 * FAULT_STEP is the number of the step, from 1. FAULT_KIND is the errno that the step gives, or 0 for SIGKILL
 * before the step. With FAULT_LASTING all later steps fail as well. FAULT_LOG gets a line for each step.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int steps;

static int below_root(const char *path) {
    const char *root = getenv("FAULT_ROOT");
    return root && *root && path && strncmp(path, root, strlen(root)) == 0;
}

/* Count a step; returns 1 if it has to fail, with errno set. */
static int faulty(const char *operation, const char *path) {
    if (!below_root(path)) return 0;
    int number = atomic_fetch_add(&steps, 1) + 1;
    const char *log = getenv("FAULT_LOG");
    if (log && *log) {
        char line[4096];
        int length = snprintf(line, sizeof line, "%d %s %s\n", number, operation, path);
        int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT, 0644);
        if (file >= 0) {
            syscall(SYS_write, file, line, length);
            syscall(SYS_close, file);
        }
    }
    const char *step = getenv("FAULT_STEP");
    int wanted = step ? atoi(step) : 0;
    if (wanted == 0 || number < wanted || (number > wanted && !getenv("FAULT_LASTING"))) return 0;
    const char *kind = getenv("FAULT_KIND");
    int error = kind ? atoi(kind) : 0;
    if (error == 0) syscall(SYS_kill, getpid(), SIGKILL);
    errno = error;
    return 1;
}

static int faulty_at(const char *operation, int directory, const char *path) {
    if (!getenv("FAULT_ROOT")) return 0;
    char whole[8192], link[64];
    if (path[0] == '/') return faulty(operation, path);
    ssize_t length;
    if (directory == AT_FDCWD) {
        length = getcwd(whole, 4096) ? (ssize_t)strlen(whole) : 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        length = readlink(link, whole, 4096);
    }
    if (length <= 0) return 0;
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    return faulty(operation, whole);
}

static int faulty_file(const char *operation, int file) {
    if (!getenv("FAULT_ROOT")) return 0;
    char path[4096], link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return faulty(operation, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                                                  \
    int name(const char *path, int flags, ...) {                                                                    \
        va_list rest;                                                                                               \
        va_start(rest, flags);                                                                                      \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;                                   \
        va_end(rest);                                                                                               \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && faulty_at("open", AT_FDCWD, path)) return -1;                \
        return REAL(name)(path, flags, mode);                                                                       \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                \
    int name(int directory, const char *path, int flags, ...) {                                                     \
        va_list rest;                                                                                               \
        va_start(rest, flags);                                                                                      \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;                                   \
        va_end(rest);                                                                                               \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && faulty_at("open", directory, path)) return -1;               \
        return REAL(name)(directory, path, flags, mode);                                                            \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size) {
    return faulty_file("write", file) ? -1 : REAL(write)(file, data, size);
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    return faulty_file("write", file) ? -1 : REAL(writev)(file, parts, count);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t place) {
    return faulty_file("write", file) ? -1 : REAL(pwrite)(file, data, size, place);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t place) {
    return faulty_file("write", file) ? -1 : REAL(pwrite64)(file, data, size, place);
}
int fsync(int file) { return faulty_file("fsync", file) ? -1 : REAL(fsync)(file); }
int fdatasync(int file) { return faulty_file("fsync", file) ? -1 : REAL(fdatasync)(file); }
int ftruncate(int file, off_t size) { return faulty_file("truncate", file) ? -1 : REAL(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) { return faulty_file("truncate", file) ? -1 : REAL(ftruncate64)(file, size); }
int rename(const char *from, const char *to) {
    return faulty_at("rename", AT_FDCWD, to) ? -1 : REAL(rename)(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    return faulty_at("rename", b, to) ? -1 : REAL(renameat)(a, from, b, to);
}
int mkdir(const char *path, mode_t mode) {
    return faulty_at("mkdir", AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode);
}
int mkdirat(int directory, const char *path, mode_t mode) {
    return faulty_at("mkdir", directory, path) ? -1 : REAL(mkdirat)(directory, path, mode);
}
int unlink(const char *path) { return faulty_at("unlink", AT_FDCWD, path) ? -1 : REAL(unlink)(path); }
int unlinkat(int directory, const char *path, int flags) {
    return faulty_at("unlink", directory, path) ? -1 : REAL(unlinkat)(directory, path, flags);
}
int rmdir(const char *path) { return faulty_at("rmdir", AT_FDCWD, path) ? -1 : REAL(rmdir)(path); }
int symlink(const char *target, const char *path) {
    return faulty_at("symlink", AT_FDCWD, path) ? -1 : REAL(symlink)(target, path);
}
