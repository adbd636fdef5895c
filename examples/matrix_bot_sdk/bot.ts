// NOT RUN: matrix-bot-sdk's encryption downloads a binary at install, which could not be had where
// this was written. It follows the documentation of matrix-bot-sdk 0.7 and is checked by no test.
//
//   npm install matrix-bot-sdk && npx ts-node bot.ts

import {
    Appservice,
    IAppserviceRegistration,
    RustSdkAppserviceCryptoStorageProvider,
    SimpleFsStorageProvider,
} from "matrix-bot-sdk";
import { StoreType } from "@matrix-org/matrix-sdk-crypto-nodejs";
import { readFileSync } from "fs";
import { load } from "js-yaml";

const registration = load(readFileSync("registration.yaml", "utf-8")) as IAppserviceRegistration;

const appservice = new Appservice({
    port: 29397, // registration.yaml's url: appservice_bridge sends transactions here
    bindAddress: "127.0.0.1",
    homeserverName: "example.org",
    homeserverUrl: "http://127.0.0.1:8008", // the homeserver itself: the bot calls it directly
    registration,
    storage: new SimpleFsStorageProvider("bot.json"),
    cryptoStorage: new RustSdkAppserviceCryptoStorageProvider("./crypto", StoreType.Sqlite),
    intentOptions: { encryption: true },
});

// The SDK takes to-device messages, device lists and key counts from transactions, under their
// unstable names: `delivery.profile: unstable`, which is the default of appservice_bridge.
appservice.botIntent.underlyingClient.on("room.invite", (roomId: string) =>
    appservice.botIntent.joinRoom(roomId),
);
appservice.on("room.decrypted_event", async (roomId: string, event: any) => {
    if (event.type !== "m.room.message" || event.sender === appservice.botUserId) return;
    await appservice.botIntent.sendText(roomId, event.content.body);
});

(async () => {
    await appservice.begin();
    await appservice.botIntent.enableEncryption();
})();
