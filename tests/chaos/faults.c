/* Faults in system calls that change files under one folder, for LD_PRELOAD.

Every change of a file is counted: creating or truncating it, write, truncate, rename, link, unlink,
mkdir, rmdir, fsync. Whatever library makes it (CPython, HDF5, Arrow, Rust) calls one of these
functions. `faults_arm` says what happens at the n-th change:

    'k'  half of the bytes are written, then SIGKILL
    'f'  half of the bytes are written, then the disk is full: nothing that needs space succeeds
    's'  SIGSTOP, once
    'l'  nothing; every change is appended to a log

Changes are numbered from 1. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static size_t folder_length;
static char mode;
static long target;
static atomic_long count;
static int log_fd = -1;

void faults_arm(const char *path, char what, long n, int log) {
    strncpy(folder, path, sizeof folder - 1);
    folder_length = strlen(folder);
    mode = what;
    target = n;
    log_fd = log;
    count = 0;
}

long faults_count(void) { return count; }

/* Write the absolute path of `path` relative to `dirfd` into `out`. */
static int absolute(int dirfd, const char *path, char *out) {
    char base[PATH_MAX] = "";
    if (path[0] != '/') {
        if (dirfd == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
            ssize_t n = readlink(link, base, sizeof base - 1);
            if (n < 0) return 0;
            base[n] = 0;
        }
    }
    return snprintf(out, PATH_MAX, "%s%s%s", base, base[0] ? "/" : "", path) < PATH_MAX;
}

/* Count a change; return 1 if it must fail because the disk is full.

`dies` becomes 1 if a write must end halfway with SIGKILL, 2 if with a full disk. */
static int change(const char *what, int dirfd, const char *path, int needs_space, int *dies) {
    int saved = errno;
    char full[PATH_MAX];
    if (!folder_length || !absolute(dirfd, path, full) || strncmp(full, folder, folder_length)) {
        errno = saved;
        return 0;
    }
    long n = ++count;
    if (log_fd >= 0) {
        char line[PATH_MAX + 32];
        int size = snprintf(line, sizeof line, "%s %s\n", what, full);
        syscall(SYS_write, log_fd, line, size);
    }
    if (mode == 'k' && n == target) {
        if (dies) *dies = 1;
        else kill(getpid(), SIGKILL);
    }
    if (mode == 's' && n == target) kill(getpid(), SIGSTOP);
    errno = saved;
    if (mode == 'f' && n == target && dies) *dies = 2;
    return mode == 'f' && n >= target && needs_space && !(dies && *dies);
}

static void note(const char *what, int dirfd, const char *path) {
    char full[PATH_MAX], line[PATH_MAX + 32];
    if (log_fd < 0 || !folder_length || !absolute(dirfd, path, full)) return;
    syscall(SYS_write, log_fd, line, snprintf(line, sizeof line, "%s %s\n", what, full));
}

static int change_fd(const char *what, int fd, int needs_space, int *dies) {
    char link[64], path[PATH_MAX];
    if (!folder_length) return 0;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (n <= 0) return 0;
    path[n] = 0;
    return change(what, AT_FDCWD, path, needs_space, dies);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FULL(value) do { errno = ENOSPC; return value; } while (0)

/* open: a change if it creates or truncates the file. */
static int opens_new(int dirfd, const char *path, int flags) {
    struct stat info;
    int saved = errno;
    int exists = fstatat(dirfd, path, &info, 0) == 0;
    errno = saved;
    return ((flags & O_CREAT) && !exists) || ((flags & O_TRUNC) && exists && info.st_size);
}

#define OPEN(name, dirfd, call, ...)                                        \
    int name(__VA_ARGS__, int flags, ...) {                                 \
        va_list list;                                                       \
        va_start(list, flags);                                              \
        mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list);                                                       \
        if (folder_length && opens_new(dirfd, path, flags) &&               \
            change("create", dirfd, path, 1, NULL))                         \
            FULL(-1);                                                       \
        return call;                                                        \
    }
OPEN(open, AT_FDCWD, REAL(open)(path, flags, bits), const char *path)
OPEN(open64, AT_FDCWD, REAL(open64)(path, flags, bits), const char *path)
OPEN(openat, dir, REAL(openat)(dir, path, flags, bits), int dir, const char *path)
OPEN(openat64, dir, REAL(openat64)(dir, path, flags, bits), int dir, const char *path)

FILE *fopen(const char *path, const char *how) {
    int flags = how[0] == 'w' ? O_CREAT | O_TRUNC : how[0] == 'a' ? O_CREAT : 0;
    if (folder_length && flags && opens_new(AT_FDCWD, path, flags) &&
        change("create", AT_FDCWD, path, 1, NULL))
        FULL(NULL);
    return REAL(fopen)(path, how);
}
FILE *fopen64(const char *path, const char *how) { return fopen(path, how); }

/* Write half of the bytes; then the end, or a disk that is full from now on. */
static ssize_t halfway(int dies, int fd, const void *bytes, size_t size, off_t at) {
    if (dies == 2 && size < 2) FULL(-1);
    ssize_t done = at < 0 ? syscall(SYS_write, fd, bytes, size / 2)
                          : syscall(SYS_pwrite64, fd, bytes, size / 2, at);
    if (dies == 1) kill(getpid(), SIGKILL);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t size) {
    int dies = 0;
    if (change_fd("write", fd, 1, &dies)) FULL(-1);
    if (dies) return halfway(dies, fd, bytes, size, -1);
    return REAL(write)(fd, bytes, size);
}
ssize_t writev(int fd, const struct iovec *parts, int num) {
    int dies = 0;
    if (change_fd("write", fd, 1, &dies)) FULL(-1);
    if (dies) return halfway(dies, fd, parts[0].iov_base, parts[0].iov_len, -1);
    return REAL(writev)(fd, parts, num);
}
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) {
    int dies = 0;
    if (change_fd("write", fd, 1, &dies)) FULL(-1);
    if (dies) return halfway(dies, fd, bytes, size, at);
    return REAL(pwrite)(fd, bytes, size, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
    return pwrite(fd, bytes, size, at);
}
ssize_t copy_file_range(int in, off64_t *at_in, int out, off64_t *at_out, size_t size, unsigned f) {
    if (change_fd("write", out, 1, NULL)) FULL(-1);
    return REAL(copy_file_range)(in, at_in, out, at_out, size, f);
}
ssize_t sendfile(int out, int in, off_t *at, size_t size);
ssize_t sendfile64(int out, int in, off64_t *at, size_t size);
ssize_t sendfile(int out, int in, off_t *at, size_t size) {
    if (change_fd("write", out, 1, NULL)) FULL(-1);
    return REAL(sendfile)(out, in, at, size);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
    return sendfile(out, in, at, size);
}

int ftruncate(int fd, off_t size) {
    if (change_fd("truncate", fd, 1, NULL)) FULL(-1);
    return REAL(ftruncate)(fd, size);
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int fsync(int fd) {
    change_fd("fsync", fd, 0, NULL);
    return REAL(fsync)(fd);
}
int fdatasync(int fd) {
    change_fd("fsync", fd, 0, NULL);
    return REAL(fdatasync)(fd);
}

int rename(const char *old, const char *new) {
    change("rename", AT_FDCWD, old, 0, NULL);
    note("to", AT_FDCWD, new);
    return REAL(rename)(old, new);
}
int renameat(int from, const char *old, int to, const char *new) {
    change("rename", from, old, 0, NULL);
    note("to", to, new);
    return REAL(renameat)(from, old, to, new);
}
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    change("rename", from, old, 0, NULL);
    note("to", to, new);
    return REAL(renameat2)(from, old, to, new, flags);
}

/* Removing a file that does not exist changes nothing. */
static int exists(int dirfd, const char *path) {
    struct stat info;
    int saved = errno;
    int found = fstatat(dirfd, path, &info, AT_SYMLINK_NOFOLLOW) == 0;
    errno = saved;
    return found;
}
int unlink(const char *path) {
    if (folder_length && exists(AT_FDCWD, path)) change("unlink", AT_FDCWD, path, 0, NULL);
    return REAL(unlink)(path);
}
int unlinkat(int dir, const char *path, int flags) {
    if (folder_length && exists(dir, path)) change("unlink", dir, path, 0, NULL);
    return REAL(unlinkat)(dir, path, flags);
}
int rmdir(const char *path) {
    if (folder_length && exists(AT_FDCWD, path)) change("rmdir", AT_FDCWD, path, 0, NULL);
    return REAL(rmdir)(path);
}
int mkdir(const char *path, mode_t bits) {
    if (folder_length && !exists(AT_FDCWD, path) && change("mkdir", AT_FDCWD, path, 1, NULL))
        FULL(-1);
    return REAL(mkdir)(path, bits);
}
int mkdirat(int dir, const char *path, mode_t bits) {
    if (folder_length && !exists(dir, path) && change("mkdir", dir, path, 1, NULL)) FULL(-1);
    return REAL(mkdirat)(dir, path, bits);
}
