/*
 * The floor: a pass-through FUSE file system that does nothing but pass operations on to a backing directory.
 *
 * It is what a mount costs when the daemon behind it is as cheap as it can be: one thread, libfuse's low-level interface,
 * and a bounded busy wait on the FUSE descriptor before sleeping, so that a request that follows closely on the last one
 * costs no wake-up. Benchmarks divide by it. It knows nothing of SQLite; it keeps no log and promises nothing that the
 * backing file system does not.
 *
 * Caching is that of a daemon that is the only writer of its files: page cache kept over opens, attributes and names
 * (absent ones too) valid for an hour, no writeback cache, locks left to the kernel.
 *
 * Usage: floor [-p POLL_MICROSECONDS] BACKING_DIRECTORY MOUNT_POINT      (ends on SIGTERM or SIGINT, and unmounts)
 */
#define FUSE_USE_VERSION 314
#define _GNU_SOURCE

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define CACHE_S 3600.0
#define BUCKETS 4096
/* A blocking wait is cut short once a second, so that a signal that came just before it is not slept through. */
#define BLOCK_MS 1000

struct node {
    struct node *next;
    dev_t device;
    ino_t inode;
    uint64_t lookups;
    int path_fd;
};

static struct node root = {.path_fd = -1};
static struct node *buckets[BUCKETS];

static struct node *node_of(fuse_ino_t ino) {
    return ino == FUSE_ROOT_ID ? &root : (struct node *)(uintptr_t)ino;
}

static struct node **bucket_of(dev_t device, ino_t inode) {
    return &buckets[(inode * 2654435761u + device) % BUCKETS];
}

static void forget_node(struct node *node, uint64_t count) {
    if (node == &root) return;
    node->lookups = node->lookups > count ? node->lookups - count : 0;
    if (node->lookups) return;
    struct node **link = bucket_of(node->device, node->inode);
    while (*link != node) link = &(*link)->next;
    *link = node->next;
    close(node->path_fd);
    free(node);
}

/* Fills `entry` and counts one lookup; 0 or an errno. */
static int find(fuse_ino_t parent, const char *name, struct fuse_entry_param *entry) {
    memset(entry, 0, sizeof *entry);
    entry->attr_timeout = entry->entry_timeout = CACHE_S;
    int fd = openat(node_of(parent)->path_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return errno;
    if (fstat(fd, &entry->attr) < 0) {
        int error = errno;
        close(fd);
        return error;
    }
    struct node **bucket = bucket_of(entry->attr.st_dev, entry->attr.st_ino);
    struct node *node = *bucket;
    while (node && (node->inode != entry->attr.st_ino || node->device != entry->attr.st_dev)) node = node->next;
    if (node) {
        close(fd);
    } else {
        node = calloc(1, sizeof *node);
        if (!node) {
            close(fd);
            return ENOMEM;
        }
        *node = (struct node){*bucket, entry->attr.st_dev, entry->attr.st_ino, 0, fd};
        *bucket = node;
    }
    node->lookups++;
    entry->ino = (uintptr_t)node;
    return 0;
}

/* A path by which a node's O_PATH descriptor can be opened or changed: the calls that take descriptors refuse those. */
static void proc_path(char path[64], fuse_ino_t ino) {
    snprintf(path, 64, "/proc/self/fd/%d", node_of(ino)->path_fd);
}

static void floor_init(void *data, struct fuse_conn_info *connection) {
    (void)data;
    connection->want &= ~(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE | FUSE_CAP_WRITEBACK_CACHE |
                          FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS);
}

static void floor_lookup(fuse_req_t request, fuse_ino_t parent, const char *name) {
    struct fuse_entry_param entry;
    int error = find(parent, name, &entry);
    if (error && error != ENOENT)
        fuse_reply_err(request, error);
    else
        fuse_reply_entry(request, &entry); /* number 0: the absence is cached */
}

static void floor_forget(fuse_req_t request, fuse_ino_t ino, uint64_t count) {
    forget_node(node_of(ino), count);
    fuse_reply_none(request);
}

static void floor_forget_multi(fuse_req_t request, size_t count, struct fuse_forget_data *forgets) {
    for (size_t i = 0; i < count; i++) forget_node(node_of(forgets[i].ino), forgets[i].nlookup);
    fuse_reply_none(request);
}

static void floor_getattr(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *file) {
    (void)file;
    struct stat attributes;
    if (fstatat(node_of(ino)->path_fd, "", &attributes, AT_EMPTY_PATH) < 0)
        fuse_reply_err(request, errno);
    else
        fuse_reply_attr(request, &attributes, CACHE_S);
}

static void floor_setattr(fuse_req_t request, fuse_ino_t ino, struct stat *wanted, int valid, struct fuse_file_info *file) {
    char path[64];
    proc_path(path, ino);
    if ((valid & FUSE_SET_ATTR_MODE) && chmod(path, wanted->st_mode) < 0) goto failed;
    if (valid & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) {
        uid_t uid = valid & FUSE_SET_ATTR_UID ? wanted->st_uid : (uid_t)-1;
        gid_t gid = valid & FUSE_SET_ATTR_GID ? wanted->st_gid : (gid_t)-1;
        if (chown(path, uid, gid) < 0) goto failed;
    }
    if (valid & FUSE_SET_ATTR_SIZE) {
        if ((file ? ftruncate((int)file->fh, wanted->st_size) : truncate(path, wanted->st_size)) < 0) goto failed;
    }
    if (valid & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME)) {
        struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};
        if (valid & FUSE_SET_ATTR_ATIME_NOW) times[0].tv_nsec = UTIME_NOW;
        else if (valid & FUSE_SET_ATTR_ATIME) times[0] = wanted->st_atim;
        if (valid & FUSE_SET_ATTR_MTIME_NOW) times[1].tv_nsec = UTIME_NOW;
        else if (valid & FUSE_SET_ATTR_MTIME) times[1] = wanted->st_mtim;
        if (utimensat(AT_FDCWD, path, times, 0) < 0) goto failed;
    }
    floor_getattr(request, ino, file);
    return;
failed:
    fuse_reply_err(request, errno);
}

static void floor_open(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *file) {
    char path[64];
    proc_path(path, ino);
    int fd = open(path, (file->flags & ~(O_NOFOLLOW | O_APPEND)) | O_CLOEXEC);
    if (fd < 0) {
        fuse_reply_err(request, errno);
        return;
    }
    file->fh = fd;
    file->keep_cache = 1;
    if (fuse_reply_open(request, file) < 0) close(fd);
}

static void floor_create(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *file) {
    struct fuse_entry_param entry;
    int flags = (file->flags & ~(O_NOFOLLOW | O_APPEND)) | O_CREAT | O_CLOEXEC;
    int fd = openat(node_of(parent)->path_fd, name, flags, mode);
    if (fd < 0) {
        fuse_reply_err(request, errno);
        return;
    }
    int error = find(parent, name, &entry);
    if (error) {
        close(fd);
        fuse_reply_err(request, error);
        return;
    }
    file->fh = fd;
    file->keep_cache = 1;
    if (fuse_reply_create(request, &entry, file) < 0) close(fd);
}

static void floor_read(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *file) {
    static char *buffer;
    static size_t capacity;
    (void)ino;
    if (size > capacity) {
        char *larger = realloc(buffer, size);
        if (!larger) {
            fuse_reply_err(request, ENOMEM);
            return;
        }
        buffer = larger;
        capacity = size;
    }
    ssize_t count = pread((int)file->fh, buffer, size, offset);
    if (count < 0)
        fuse_reply_err(request, errno);
    else
        fuse_reply_buf(request, buffer, (size_t)count);
}

static void floor_write(fuse_req_t request, fuse_ino_t ino, const char *data, size_t size, off_t offset,
                        struct fuse_file_info *file) {
    (void)ino;
    ssize_t count = pwrite((int)file->fh, data, size, offset);
    if (count < 0)
        fuse_reply_err(request, errno);
    else
        fuse_reply_write(request, (size_t)count);
}

static void floor_fsync(fuse_req_t request, fuse_ino_t ino, int datasync, struct fuse_file_info *file) {
    (void)ino;
    int result = datasync ? fdatasync((int)file->fh) : fsync((int)file->fh);
    fuse_reply_err(request, result < 0 ? errno : 0);
}

static void floor_release(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *file) {
    (void)ino;
    close((int)file->fh);
    fuse_reply_err(request, 0);
}

static void floor_unlink(fuse_req_t request, fuse_ino_t parent, const char *name) {
    fuse_reply_err(request, unlinkat(node_of(parent)->path_fd, name, 0) < 0 ? errno : 0);
}

static void floor_rmdir(fuse_req_t request, fuse_ino_t parent, const char *name) {
    fuse_reply_err(request, unlinkat(node_of(parent)->path_fd, name, AT_REMOVEDIR) < 0 ? errno : 0);
}

static void floor_mkdir(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode) {
    struct fuse_entry_param entry;
    int error = mkdirat(node_of(parent)->path_fd, name, mode) < 0 ? errno : find(parent, name, &entry);
    if (error)
        fuse_reply_err(request, error);
    else
        fuse_reply_entry(request, &entry);
}

static void floor_rename(fuse_req_t request, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
                         const char *new_name, unsigned int flags) {
    int result = renameat2(node_of(parent)->path_fd, name, node_of(new_parent)->path_fd, new_name, flags);
    fuse_reply_err(request, result < 0 ? errno : 0);
}

static void floor_opendir(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *file) {
    int fd = openat(node_of(ino)->path_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory) {
        int error = errno;
        if (fd >= 0) close(fd);
        fuse_reply_err(request, error);
        return;
    }
    file->fh = (uintptr_t)directory;
    if (fuse_reply_open(request, file) < 0) closedir(directory);
}

static void floor_readdir(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *file) {
    (void)ino;
    DIR *directory = (DIR *)(uintptr_t)file->fh;
    char *buffer = malloc(size);
    size_t used = 0;
    if (!buffer) {
        fuse_reply_err(request, ENOMEM);
        return;
    }
    /* Always sought: an entry that did not fit the last answer has been read from the stream already. */
    if (offset) seekdir(directory, offset);
    else rewinddir(directory);
    for (struct dirent *found; (found = readdir(directory));) {
        struct stat attributes = {.st_ino = found->d_ino, .st_mode = (mode_t)found->d_type << 12};
        size_t needed = fuse_add_direntry(request, buffer + used, size - used, found->d_name, &attributes, found->d_off);
        if (needed > size - used) break;
        used += needed;
    }
    fuse_reply_buf(request, buffer, used);
    free(buffer);
}

static void floor_releasedir(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *file) {
    (void)ino;
    closedir((DIR *)(uintptr_t)file->fh);
    fuse_reply_err(request, 0);
}

static void floor_fsyncdir(fuse_req_t request, fuse_ino_t ino, int datasync, struct fuse_file_info *file) {
    (void)ino;
    int fd = dirfd((DIR *)(uintptr_t)file->fh);
    fuse_reply_err(request, (datasync ? fdatasync(fd) : fsync(fd)) < 0 ? errno : 0);
}

static void floor_statfs(fuse_req_t request, fuse_ino_t ino) {
    struct statvfs figures;
    if (fstatvfs(node_of(ino)->path_fd, &figures) < 0)
        fuse_reply_err(request, errno);
    else
        fuse_reply_statfs(request, &figures);
}

static const struct fuse_lowlevel_ops operations = {
    .init = floor_init,         .lookup = floor_lookup,       .forget = floor_forget, .forget_multi = floor_forget_multi,
    .getattr = floor_getattr,   .setattr = floor_setattr,     .open = floor_open,     .create = floor_create,
    .read = floor_read,         .write = floor_write,         .fsync = floor_fsync,   .release = floor_release,
    .unlink = floor_unlink,     .rmdir = floor_rmdir,         .mkdir = floor_mkdir,   .rename = floor_rename,
    .opendir = floor_opendir,   .readdir = floor_readdir,     .releasedir = floor_releasedir,
    .fsyncdir = floor_fsyncdir, .statfs = floor_statfs,
};

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Serves until unmounted or signalled. The descriptor does not block: polling is reading it until something is there. */
static int serve(struct fuse_session *session, int64_t poll_ns) {
    struct fuse_buf buffer = {0};
    struct pollfd readable = {.fd = fuse_session_fd(session), .events = POLLIN};
    int64_t deadline = 0;
    int result = 0;
    while (!fuse_session_exited(session)) {
        result = fuse_session_receive_buf(session, &buffer);
        if (result > 0) {
            fuse_session_process_buf(session, &buffer);
            deadline = poll_ns ? now_ns() + poll_ns : 0;
        } else if (result == -EAGAIN) {
            if (!poll_ns || now_ns() >= deadline) poll(&readable, 1, BLOCK_MS);
        } else if (result != -EINTR) {
            break; /* 0: unmounted */
        }
    }
    free(buffer.mem);
    return result < 0 && result != -EINTR && result != -EAGAIN ? 1 : 0;
}

static int usage(void) {
    fputs("usage: floor [-p POLL_MICROSECONDS] BACKING_DIRECTORY MOUNT_POINT\n", stderr);
    return 2;
}

int main(int count, char **arguments) {
    long poll_us = 40;
    for (int option; (option = getopt(count, arguments, "p:")) != -1;) {
        if (option != 'p' || (poll_us = strtol(optarg, NULL, 10)) < 0) return usage();
    }
    if (count - optind != 2) return usage();
    umask(0);
    root.path_fd = open(arguments[optind], O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root.path_fd < 0) {
        perror(arguments[optind]);
        return 1;
    }
    char *options[] = {"floor", "-o", "fsname=floor,subtype=floor,nosuid,nodev", NULL};
    struct fuse_args fuse_arguments = FUSE_ARGS_INIT(3, options);
    struct fuse_session *session = fuse_session_new(&fuse_arguments, &operations, sizeof operations, NULL);
    if (!session || fuse_set_signal_handlers(session) < 0) return 1;
    if (fuse_session_mount(session, arguments[optind + 1]) < 0) return 1;
    int fd = fuse_session_fd(session);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    int result = serve(session, poll_us * 1000);
    fuse_session_unmount(session);
    fuse_remove_signal_handlers(session);
    fuse_session_destroy(session);
    return result;
}
