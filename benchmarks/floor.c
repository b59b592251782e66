/* floor: the least a fan-out server can do, as the yardstick for the relay.
 *
 * It upgrades WebSockets, takes finished frames of one size from a publisher's TCP connection, and
 * sends each frame to every socket with a bare send() loop. With JOIN above 1 it puts that many
 * frames into one send(), as the relay does when several events meet in one loop turn. It parses
 * nothing, keeps nothing, and never reads from a socket after the handshake.
 *
 * It prints "ports WEBSOCKET PUBLISHER" and then takes lines on stdin:
 *   frame BYTES JOIN    the size of one frame, and frames per send() in thousandths -> "ok"
 * It ends with stdin.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_SOCKETS = 19000, BUFFER = 1 << 20, FLUSH_AFTER_MS = 5 };

/* The answer to the one Sec-WebSocket-Key that load.c sends: the example of RFC 6455, 1.3. */
static const char UPGRADED[] = "HTTP/1.1 101 Switching Protocols\r\n"
                               "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                               "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static int sockets[MAX_SOCKETS];
static int socket_count;

static char pending[BUFFER]; /* frames not sent yet */
static size_t pending_bytes;
static size_t frame_bytes;
static double join = 1.0, credit; /* frames per send(), and the fraction carried over */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int listen_on_loopback(unsigned short *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) || listen(fd, 2048))
        die("listen");
    getsockname(fd, (struct sockaddr *)&address, &size);
    *port = ntohs(address.sin_port);
    return fd;
}

static int accept_one(int listener)
{
    int on = 1, fd = accept(listener, NULL, NULL);
    if (fd < 0)
        die("accept");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* The load client sends its request at once, so a blocking read is enough. */
static void accept_websocket(int listener)
{
    char request[4096];
    size_t have = 0;
    int fd = accept_one(listener);
    do {
        ssize_t got = recv(fd, request + have, sizeof request - have, 0);
        if (got <= 0 || socket_count == MAX_SOCKETS) {
            close(fd);
            return;
        }
        have += (size_t)got;
    } while (!memmem(request, have, "\r\n\r\n", 4));
    if (send(fd, UPGRADED, sizeof UPGRADED - 1, 0) < 0)
        die("upgrade");
    sockets[socket_count++] = fd;
}

/* Blocking sockets: a full one is waited for, so nothing is ever skipped. */
static void send_to_all(const char *data, size_t bytes)
{
    for (int i = 0; i < socket_count; i++)
        if (send(sockets[i], data, bytes, 0) != (ssize_t)bytes) {
            close(sockets[i]);
            sockets[i--] = sockets[--socket_count];
        }
}

/* Send what is complete: whole joins only, or everything when `all` is set. */
static void fan_out(int all)
{
    size_t sent = 0;
    while (frame_bytes && pending_bytes - sent >= frame_bytes) {
        size_t take = (size_t)(credit + join), held = (pending_bytes - sent) / frame_bytes;
        if (take > held) {
            if (!all)
                break;
            take = held;
            credit = 0;
        } else {
            credit += join - (double)take;
        }
        send_to_all(pending + sent, take * frame_bytes);
        sent += take * frame_bytes;
    }
    pending_bytes -= sent;
    memmove(pending, pending + sent, pending_bytes);
}

static void read_publisher(struct pollfd *publisher)
{
    ssize_t got = recv(publisher->fd, pending + pending_bytes, BUFFER - pending_bytes, 0);
    if (got <= 0) {
        close(publisher->fd);
        publisher->fd = -1;
        return;
    }
    pending_bytes += (size_t)got;
    fan_out(0);
}

static void read_command(void)
{
    char line[128];
    unsigned thousandths;
    ssize_t got = read(STDIN_FILENO, line, sizeof line - 1);
    if (got <= 0)
        exit(0);
    line[got] = 0;
    if (sscanf(line, "frame %zu %u", &frame_bytes, &thousandths) != 2 || thousandths < 1000)
        die("command");
    join = thousandths / 1000.0;
    credit = 0;
    puts("ok");
}

int main(void)
{
    unsigned short websocket_port, publisher_port;
    struct pollfd fds[4] = {{.fd = STDIN_FILENO, .events = POLLIN},
                            {.fd = listen_on_loopback(&websocket_port), .events = POLLIN},
                            {.fd = listen_on_loopback(&publisher_port), .events = POLLIN},
                            {.fd = -1, .events = POLLIN}};
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("ports %u %u\n", websocket_port, publisher_port);
    for (;;) {
        int ready = poll(fds, 4, pending_bytes ? FLUSH_AFTER_MS : -1);
        if (ready < 0 && errno != EINTR)
            die("poll");
        if (ready == 0)
            fan_out(1);
        if (fds[0].revents)
            read_command();
        if (fds[1].revents)
            accept_websocket(fds[1].fd);
        if (fds[2].revents)
            fds[3].fd = accept_one(fds[2].fd);
        else if (fds[3].revents)
            read_publisher(&fds[3]);
    }
}
