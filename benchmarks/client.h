/* client: WebSocket connections to the server under test, and what arrived on them. */
#ifndef CLIENT_H
#define CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_CONNS = 19000, MAX_AUTH = 1024, BUCKET_NS = 10000, BUCKETS = 500000, DIGITS = 19 };
static const uint64_t MS = 1000000; /* in nanoseconds */

enum state { UPGRADING, AUTHENTICATING, JOINING, LIVE, PLAIN };

struct conn {
    int fd;
    enum state state;
    bool publishes;
    const char *auth;
    char *rest; /* the start of a frame whose end has not come yet */
    size_t rest_bytes;
};

/* What the next connections do; an absent auth means no conversation (the floor). */
struct target {
    int port, auth_count;
    char path[1024], *auths[MAX_AUTH], *watch;
};

/* What arrived since it was last cleared. */
struct seen {
    uint64_t deliveries, bytes, other;
    uint32_t latency[BUCKETS];
};

extern struct target target;
extern struct seen seen;
extern int live_count;    /* sockets that watch */
extern int epoll_fd;      /* data.ptr is a conn, or NULL for what is not ours */
extern char failure[512]; /* the first thing that went wrong, or empty */

void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t now_ns(void);

/* Connect, and start the conversation that `turn` leads on; NULL when that failed. */
struct conn *open_websocket(bool publishes);
/* Connect to a port where the publisher writes bytes as they are: Redis, HTTP, the floor. */
struct conn *open_plain(int port);
/* Wait for input, at most so long, and handle it. */
void turn(uint64_t wait_ns);
/* Data segments received so far: on loopback, one for each write that the server made. */
uint64_t count_segments(void);

#endif
