/* A Modbus TCP server of libmodbus and nothing else, for benchmarks/drivers.py: serves a free loopback port and prints it.
 * Built by the benchmark: cc -O2 libmodbus_server.c -o server -lmodbus */
#include <arpa/inet.h>
#include <modbus/modbus.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static modbus_mapping_t *registers;

static void *serve(void *number) {
    int one = 1, length, socket_number = (int)(long)number;
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    modbus_t *context = modbus_new_tcp("127.0.0.1", 502);
    setsockopt(socket_number, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    modbus_set_slave(context, 1);
    modbus_set_socket(context, socket_number);
    while ((length = modbus_receive(context, query)) >= 0)
        if (length > 0 && modbus_reply(context, query, length, registers) < 0)
            break;
    modbus_close(context);
    modbus_free(context);
    return NULL;
}

static void *until_input_ends(void *nothing) {
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    _exit(0);
    return nothing;
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    pthread_t thread;
    registers = modbus_mapping_new(0, 0, 2000, 2000);
    for (int i = 0; i < 2000; i++)
        registers->tab_registers[i] = registers->tab_input_registers[i] = (uint16_t)i;
    if (bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 128) < 0)
        return 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    pthread_create(&thread, NULL, until_input_ends, NULL);
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection >= 0) {
            pthread_create(&thread, NULL, serve, (void *)(long)connection);
            pthread_detach(thread);
        }
    }
}
